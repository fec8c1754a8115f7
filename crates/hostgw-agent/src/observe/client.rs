//! Asks the agent of this node for its status.

use std::io;
use std::path::Path;

use http::{Request, StatusCode};
use http_body_util::{BodyExt, Empty};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;

use super::report::StatusReport;
use crate::error::{Error, Result};

/// True if an agent listens on this socket.
pub(crate) async fn is_running(socket: &Path) -> bool {
    UnixStream::connect(socket).await.is_ok()
}

/// Asks the agent for its status. Returns the JSON text, and the same parsed.
pub(crate) async fn status_report(socket: &Path) -> Result<(String, StatusReport)> {
    let answer = async {
        let text = get(socket, "/status").await?;
        let report = serde_json::from_str(&text)?;
        Ok((text, report))
    };
    answer.await.map_err(|source| Error::NoAgent {
        socket: socket.to_owned(),
        source,
    })
}

async fn get(socket: &Path, path: &'static str) -> io::Result<String> {
    let stream = TokioIo::new(UnixStream::connect(socket).await?);
    let (mut sender, connection) = http1::handshake(stream).await.map_err(io::Error::other)?;
    let request = Request::get(path)
        .header("host", "localhost")
        .body(Empty::<Bytes>::new())
        .expect("a path is a request");
    let answer = async {
        let response = sender.send_request(request).await?;
        let status = response.status();
        let body = response.into_body().collect().await?.to_bytes();
        Ok::<_, hyper::Error>((status, body))
    };
    // The connection carries the answer, and ends with it or before.
    let (status, body) = tokio::select! {
        answer = answer => answer.map_err(io::Error::other)?,
        ended = connection => {
            let reason = ended.err().map_or("it closed the connection".to_owned(), |error| error.to_string());
            return Err(io::Error::other(reason));
        }
    };
    if status != StatusCode::OK {
        return Err(io::Error::other(format!("it answers {status}")));
    }
    String::from_utf8(body.to_vec()).map_err(io::Error::other)
}
