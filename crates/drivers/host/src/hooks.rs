//! Hooks: a program with the event on its standard input, or a POST with the event as its body.

use std::process::Stdio;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use http_body_util::Full;
use hyper::Request;
use hyper_util::rt::TokioIo;
use microvm_ports::{HookError, HookRunner};
use microvm_types::template::HookAction;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::process::{Child, ChildStderr, Command};

/// Bytes of a program's standard error that are kept for the message.
const STDERR_LIMIT: usize = 4_096;

/// Runs hooks on this host.
#[derive(Debug, Clone, Copy, Default)]
pub struct HostHooks;

#[async_trait]
impl HookRunner for HostHooks {
    async fn run(
        &self,
        action: &HookAction,
        event: &serde_json::Value,
        timeout: Duration,
    ) -> Result<(), HookError> {
        let body = event.to_string();
        let work = async {
            match action {
                HookAction::Program(command) => program(command, body.as_bytes()).await,
                HookAction::Webhook(address) => webhook(address, body).await,
            }
        };
        tokio::time::timeout(timeout, work).await.unwrap_or(Err(HookError::Timeout(timeout)))
    }
}

/// Kills the program and all it started when dropped before it has ended.
struct Group {
    child: Child,
    id: Option<Pid>,
}

impl Drop for Group {
    fn drop(&mut self) {
        // After the child was waited for its number may be another's; `id` is taken away before that.
        if let Some(id) = self.id {
            let _ = killpg(id, Signal::SIGKILL);
        }
    }
}

async fn program(command: &[String], event: &[u8]) -> Result<(), HookError> {
    let (name, arguments) = command.split_first().ok_or_else(|| HookError::Start {
        program: String::new(),
        detail: "the hook names no program".to_owned(),
    })?;
    let start = |detail: String| HookError::Start { program: name.clone(), detail };
    let mut child = Command::new(name)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        // A group of its own, so that all that it starts can be killed with it.
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| start(error.to_string()))?;
    let (stdin, stderr) = (child.stdin.take(), child.stderr.take());
    let id = child.id().and_then(|id| i32::try_from(id).ok()).map(Pid::from_raw);
    let mut group = Group { child, id };
    let feed = async {
        if let Some(mut stdin) = stdin {
            // A program that does not read its event is fine.
            let _ = stdin.write_all(event).await;
        }
    };
    let mut text = Vec::new();
    let status = {
        let words = async {
            if let Some(stderr) = stderr {
                read_beginning(stderr, &mut text).await;
            }
        };
        let mut beside = std::pin::pin!(async { tokio::join!(feed, words) });
        let mut ended = std::pin::pin!(group.child.wait());
        tokio::select! {
            status = &mut ended => {
                // What it wrote last is in the pipe. Not until the end of the pipe: a daemon that it left behind has it open,
                // too.
                let _ = tokio::time::timeout(Duration::ZERO, beside).await;
                status
            }
            _ = &mut beside => ended.await,
        }
    };
    group.id = None;
    let status = status.map_err(|error| start(error.to_string()))?;
    if status.success() {
        return Ok(());
    }
    let words = String::from_utf8_lossy(&text).trim().to_owned();
    Err(HookError::Failed { program: name.clone(), status: status.to_string(), detail: words })
}

/// Reads all of a program's standard error, of which it keeps the first [`STDERR_LIMIT`] bytes: a program whose words nobody
/// reads any more would be killed by its next one.
async fn read_beginning(mut stderr: ChildStderr, kept: &mut Vec<u8>) {
    let mut part = [0; 4_096];
    while let Ok(count @ 1..) = stderr.read(&mut part).await {
        let room = STDERR_LIMIT.saturating_sub(kept.len());
        kept.extend_from_slice(&part[..count.min(room)]);
    }
}

async fn webhook(address: &str, body: String) -> Result<(), HookError> {
    let failed = |detail: String| HookError::Webhook { address: address.to_owned(), detail };
    let uri: hyper::Uri =
        address.parse().map_err(|error: hyper::http::uri::InvalidUri| failed(error.to_string()))?;
    let host = uri.host().ok_or_else(|| failed("it names no host".to_owned()))?.to_owned();
    let port = uri.port_u16().unwrap_or(80);
    let stream = TcpStream::connect((host.trim_matches(['[', ']']), port))
        .await
        .map_err(|error| failed(error.to_string()))?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|error| failed(error.to_string()))?;
    let path = uri.path_and_query().map_or("/", hyper::http::uri::PathAndQuery::as_str);
    let request = Request::post(path)
        .header("host", format!("{host}:{port}"))
        .header("content-type", "application/json")
        .body(Full::new(Bytes::from(body)))
        .map_err(|error| failed(error.to_string()))?;
    let exchange = sender.send_request(request);
    tokio::pin!(exchange, connection);
    let answer = tokio::select! {
        biased;
        answer = &mut exchange => answer,
        // The other side may close right after its answer; the answer is there then.
        _ = &mut connection => exchange.await,
    };
    let answer = answer.map_err(|error| failed(error.to_string()))?;
    if answer.status().is_success() {
        Ok(())
    } else {
        Err(failed(format!("it answered {}", answer.status())))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use tokio::io::AsyncBufReadExt;
    use tokio::net::TcpListener;

    use super::*;

    const LIMIT: Duration = Duration::from_secs(10);

    fn shell(script: &str) -> HookAction {
        HookAction::Program(vec!["/bin/sh".into(), "-c".into(), script.into()])
    }

    #[tokio::test]
    async fn a_program_reads_the_event() {
        let script = shell(r#"read line; test "$line" = '{"event":"after_start"}'"#);
        HostHooks.run(&script, &json!({"event": "after_start"}), LIMIT).await.unwrap();
    }

    #[tokio::test]
    async fn a_failure_tells_status_and_last_words() {
        let error = HostHooks.run(&shell("echo no thanks >&2; exit 3"), &json!({}), LIMIT).await.unwrap_err();
        let text = error.to_string();
        assert!(text.contains("no thanks") && text.contains('3'), "{text}");
        let missing = HookAction::Program(vec!["/nonexistent".into()]);
        assert!(matches!(HostHooks.run(&missing, &json!({}), LIMIT).await, Err(HookError::Start { .. })));
    }

    #[tokio::test]
    async fn a_program_may_say_much_and_leave_a_daemon_behind() {
        let much = "head -c 300000 /dev/zero | tr '\\0' x >&2";
        HostHooks.run(&shell(much), &json!({}), LIMIT).await.unwrap();
        let error = HostHooks
            .run(&shell(&format!("{much}; exit 3")), &json!({}), LIMIT)
            .await
            .unwrap_err()
            .to_string();
        let kept = error.chars().filter(|letter| *letter == 'x').count();
        assert!((STDERR_LIMIT..STDERR_LIMIT + 100).contains(&kept), "{kept} of its letters are told");
        // The daemon has standard error open for longer than the hook may take.
        let begun = std::time::Instant::now();
        let daemon = shell("sleep 20 & echo gone >&2; exit 4");
        let error = HostHooks.run(&daemon, &json!({}), LIMIT).await.unwrap_err().to_string();
        assert!(error.contains("gone") && begun.elapsed() < LIMIT, "{error}");
    }

    #[tokio::test]
    async fn a_slow_program_is_killed_with_its_children() {
        // The grandchild holds the pipe open; its end of file is the grandchild's death.
        let fifo = std::env::temp_dir().join(format!("hook-{}", std::process::id()));
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let mut pipe = tokio::net::unix::pipe::OpenOptions::new().open_receiver(&fifo).unwrap();
        let script = format!("sleep 1000 > {} & echo started >&2; wait", fifo.display());
        let error = HostHooks.run(&shell(&script), &json!({}), Duration::from_millis(500)).await.unwrap_err();
        assert!(matches!(error, HookError::Timeout(_)), "{error}");
        let mut rest = Vec::new();
        tokio::time::timeout(LIMIT, pipe.read_to_end(&mut rest))
            .await
            .expect("the grandchild still runs")
            .unwrap();
        std::fs::remove_file(fifo).unwrap();
    }

    #[tokio::test]
    async fn a_webhook_posts_the_event() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("http://{}/hook?x=1", listener.local_addr().unwrap());
        let server = tokio::spawn(async move {
            let (stream, _) = listener.accept().await.unwrap();
            let (read, mut write) = stream.into_split();
            let mut lines = tokio::io::BufReader::new(read).lines();
            let first = lines.next_line().await.unwrap().unwrap();
            write.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").await.unwrap();
            first
        });
        HostHooks.run(&HookAction::Webhook(address), &json!({"a": 1}), LIMIT).await.unwrap();
        assert_eq!(server.await.unwrap(), "POST /hook?x=1 HTTP/1.1");
        let nobody = HookAction::Webhook("http://127.0.0.1:1/".into());
        assert!(matches!(HostHooks.run(&nobody, &json!({}), LIMIT).await, Err(HookError::Webhook { .. })));
    }
}
