//! The attachments that are still valid, for GC.

use serde::Deserialize;

use crate::{Code, Error, Json};

/// An attachment that the runtime still has.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
pub struct ValidAttachment {
    /// Container id.
    #[serde(rename = "containerID")]
    pub container_id: String,
    /// Name of the interface.
    pub ifname: String,
}

impl ValidAttachment {
    /// Reads `cni.dev/valid-attachments`, or `cni.dev/attachments` as the first SPEC 1.1.0 had it.
    /// `None` if the configuration has neither: then it is unknown which attachments are valid,
    /// which is not the same as none.
    ///
    /// Fails with code 6 and the name of the key.
    pub fn list(json: &Json) -> Result<Option<Vec<Self>>, Error> {
        #[derive(Deserialize)]
        struct Lists {
            #[serde(rename = "cni.dev/valid-attachments")]
            valid: Option<Vec<ValidAttachment>>,
            #[serde(rename = "cni.dev/attachments")]
            old: Option<Vec<ValidAttachment>>,
        }
        let lists: Lists = json
            .to()
            .map_err(|error| Error::new(Code::DECODE, format!("network configuration: {error}")))?;
        Ok(lists.valid.or(lists.old))
    }
}
