//! Owns a server whose answers are meant to take as much memory as possible.
//! Never measures anything.

use std::{io::Write, sync::Arc, time::Duration};

use flate2::{Compression, write::GzEncoder};
use lab::simulator::tls;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::TcpListener,
    sync::Barrier,
};

/// The kinds of answers.
pub const KINDS: [&str; 13] =
    ["arrays", "data", "members", "tasks", "empty", "large", "text", "nul", "nul-gzip", "deep", "slow", "head", "html"];

/// Just below the limit of the client.
const SIZE: usize = 8 * 1024 * 1024 - 4096;

/// Serves answers of a kind. The last byte of the answers is sent when this many of them wait for it, so that the client
/// holds all of them at once. Calls `ready` when the certificate of the authority is in the file `ca`.
pub async fn serve(listener: TcpListener, scheme: &str, kind: &str, at_once: usize, ca: &str, ready: impl FnOnce()) {
    let (acceptor, pem) = tls::acceptor(&["127.0.0.1"]);
    std::fs::write(ca, pem).unwrap();
    ready();
    let (response, barrier) = (Arc::new(response(kind)), Arc::new(Barrier::new(at_once)));
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        let (response, barrier) = (response.clone(), barrier.clone());
        let acceptor = (scheme == "https").then(|| acceptor.clone());
        tokio::spawn(async move {
            drop(match acceptor {
                Some(acceptor) => answer(acceptor.accept(stream).await.unwrap(), &response, &barrier).await,
                None => answer(stream, &response, &barrier).await,
            });
        });
    }
}

async fn answer(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    response: &[u8],
    barrier: &Barrier,
) -> std::io::Result<()> {
    let mut request = vec![0; 4096];
    let length = stream.read(&mut request).await?;
    if String::from_utf8_lossy(&request[..length]).contains("wf-warm-up") {
        stream.write_all(&with_head(b"{\"id\":\"wf-warm-up\",\"state\":\"x\"}", "")).await?;
        return stream.flush().await;
    }
    let (most, last) = response.split_at(response.len() - 1);
    // A client that has enough closes the connection.
    let sent = async { stream.write_all(most).await.and(stream.flush().await) }.await;
    tokio::time::timeout(Duration::from_secs(20), barrier.wait()).await.ok();
    // Until the client has read what is in the buffers of the connection.
    tokio::time::sleep(Duration::from_millis(500)).await;
    sent?;
    stream.write_all(last).await?;
    stream.flush().await
}

fn with_head(body: &[u8], headers: &str) -> Vec<u8> {
    let length = body.len();
    let mut response = format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n{headers}\r\n").into_bytes();
    response.extend_from_slice(body);
    response
}

fn gzipped(body: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(vec![], Compression::best());
    encoder.write_all(body).unwrap();
    with_head(&encoder.finish().unwrap(), "content-encoding: gzip\r\n")
}

/// Returns a run whose JSON contains `part`, repeated up to the size, between two texts.
fn run(before: &str, part: &str, after: &str) -> Vec<u8> {
    let start = format!(r#"{{"id":"wf-1","state":"running",{before}"#);
    let repeated = part.repeat(SIZE / part.len());
    format!("{start}{repeated}{after}}}").into_bytes()
}

/// Returns a task whose error has data of 16 KiB made of `part`.
fn task_with_data(before: &str, part: &str, after: &str) -> String {
    let part = format!("{part},");
    let data = part.repeat((16 * 1024 - 200) / part.len());
    format!(r#"{{"error":{{"data":{before}{}{after}}}}},"#, data.trim_end_matches(','))
}

fn response(kind: &str) -> Vec<u8> {
    match kind {
        "arrays" => gzipped(&run(r#""task_instances":["#, "[0],", "0]")),
        "data" => gzipped(&run(r#""task_instances":["#, &task_with_data("[", "[0]", "]"), "0]")),
        "members" => gzipped(&run(r#""task_instances":["#, &task_with_data("[", r#"{"":0}"#, "]"), "0]")),
        "tasks" => gzipped(&run(r#""task_instances":["#, r#"{"id":"wft-1","state":"failed","label":"x"},"#, "0]")),
        "empty" => gzipped(&run(r#""task_instances":["#, "{},", "0]")),
        "large" => {
            let text = "x".repeat(4000);
            let fields = ["id", "run_id", "workflow_id", "label", "state", "tenant"];
            let fields: Vec<_> = fields.iter().map(|key| format!(r#""{key}":"{text}""#)).collect();
            with_head(&run(r#""task_instances":["#, &format!("{{{}}},", fields.join(",")), "0]"), "")
        }
        "text" => with_head(&run(r#""name":""#, "x", "\""), ""),
        "nul" => with_head(&run(r#""name":""#, "\0", "\""), ""),
        "nul-gzip" => gzipped(&run(r#""name":""#, "\\u0000", "\"")),
        "deep" => gzipped(&run(r#""error":{"data":"#, "[", "")),
        // Every value is as large as may be held, and is not complete until the end.
        "slow" => {
            let task = format!(r#""task_instances":[{{"label":"{}"#, "x".repeat(400 * 1024));
            with_head(format!(r#"{{"id":"wf-1","state":"running",{task}"}}]}}"#).as_bytes(), "")
        }
        "head" => {
            let head = format!("HTTP/1.1 200 OK\r\nx: {}", "x".repeat(100 * 1024 * 1024));
            head.into_bytes()
        }
        "html" => with_head("<p>".repeat(SIZE / 3).as_bytes(), ""),
        unknown => panic!("{unknown} is none of {KINDS:?}"),
    }
}
