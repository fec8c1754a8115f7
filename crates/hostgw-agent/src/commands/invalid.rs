//! Why a file is invalid.

use crate::network;
use crate::store::file::cluster;

/// Why a file is invalid. The text starts with the key.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Invalid {
    #[error(transparent)]
    Cluster(#[from] cluster::Error),
    #[error(transparent)]
    NetConf(#[from] network::Error),
    #[error("{0}")]
    Text(String),
}

impl From<String> for Invalid {
    fn from(reason: String) -> Self {
        Self::Text(reason)
    }
}

impl From<serde_json::Error> for Invalid {
    fn from(error: serde_json::Error) -> Self {
        Self::Text(error.to_string())
    }
}

impl From<cni::Error> for Invalid {
    fn from(error: cni::Error) -> Self {
        Self::Text(if error.details.is_empty() {
            error.msg
        } else {
            format!("{}: {}", error.msg, error.details)
        })
    }
}
