//! Texts of a store, as they may be logged and shown.

/// The longest text of a store that is shown, in bytes. Names of Kubernetes' objects are shorter.
const LONGEST: usize = 300;

/// Returns the beginning of a text that comes from a store, without characters that control a
/// terminal or begin a new line in a log.
pub(crate) fn excerpt(text: &str) -> String {
    let end = (0..=text.len().min(LONGEST)).rfind(|end| text.is_char_boundary(*end));
    let (begin, rest) = text.split_at(end.unwrap_or_default());
    let mut shown = String::with_capacity(begin.len());
    for character in begin.chars() {
        if character.is_control() {
            shown.extend(character.escape_default());
        } else {
            shown.push(character);
        }
    }
    if !rest.is_empty() {
        shown.extend(["… (", &text.len().to_string(), " bytes in all)"]);
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_texts_are_cut_off_and_control_characters_are_escaped() {
        assert_eq!(excerpt("10.10.1.0-24"), "10.10.1.0-24");
        assert_eq!(excerpt("a\nready\u{1b}[2J"), "a\\nready\\u{1b}[2J");
        let long = excerpt(&"ä".repeat(500_000));
        assert!(long.ends_with("ä… (1000000 bytes in all)"), "{long}");
        assert!(long.len() < 350);
    }
}
