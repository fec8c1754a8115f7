//! Texts that come from a store, made fit to be logged and shown.

/// The longest value, key or name that is shown, in bytes. Names of Kubernetes' objects are shorter.
const LONGEST: usize = 300;
/// The longest sentence about such texts, in bytes.
const LONGEST_SENTENCE: usize = 1000;

/// Returns the beginning of a value, key or name that comes from a store, without characters that
/// control a terminal or begin a new line in a log.
pub(crate) fn excerpt(text: &str) -> String {
    cut_off(text, LONGEST)
}

/// The same for a sentence that contains such texts.
pub(crate) fn excerpt_of_sentence(text: &str) -> String {
    cut_off(text, LONGEST_SENTENCE)
}

fn cut_off(text: &str, longest: usize) -> String {
    let end = (0..=text.len().min(longest)).rfind(|end| text.is_char_boundary(*end));
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
        // A sentence about a value that was cut off stays whole.
        let sentence = format!("its backend is {long}, not \"host-gw\"");
        assert_eq!(excerpt_of_sentence(&sentence), sentence);
    }
}
