//! A registry on loopback that answers as it is told.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

/// One request as it came.
#[derive(Debug, Clone, Default)]
pub(super) struct Asked {
    pub(super) path: String,
    pub(super) authorization: Option<String>,
    /// First byte of the range that was asked for.
    pub(super) from: Option<usize>,
}

/// One answer: head, body, and what comes after it.
#[derive(Debug, Clone, Default)]
pub(super) struct Answer {
    status: u16,
    headers: String,
    body: Vec<u8>,
    length: Option<usize>,
    then: Then,
}

#[derive(Debug, Clone, Default)]
enum Then {
    #[default]
    Close,
    /// The same again and again, with a rest between.
    Again(Vec<u8>, Duration),
    Silence,
}

impl Answer {
    pub(super) fn of(status: u16, body: impl Into<Vec<u8>>) -> Self {
        let body = body.into();
        Self { status, length: Some(body.len()), body, ..Self::default() }
    }

    pub(super) fn with(mut self, name: &str, value: impl std::fmt::Display) -> Self {
        self.headers += &format!("{name}: {value}\r\n");
        self
    }

    /// Says another length than the body has; `None`: none.
    pub(super) fn saying(mut self, length: Option<usize>) -> Self {
        self.length = length;
        self
    }

    pub(super) fn then_again(mut self, part: impl Into<Vec<u8>>, rest: Duration) -> Self {
        self.then = Then::Again(part.into(), rest);
        self
    }

    pub(super) fn then_silence(mut self) -> Self {
        self.then = Then::Silence;
        self
    }
}

type Script = Arc<dyn Fn(&Asked) -> Answer + Send + Sync>;

/// The registry; ended when dropped.
pub(super) struct Fake {
    pub(super) address: String,
    log: Arc<Mutex<Vec<Asked>>>,
    sent: Arc<AtomicU64>,
    _tasks: JoinSet<()>,
}

impl Fake {
    pub(super) async fn start(script: impl Fn(&Asked) -> Answer + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (log, sent, script) = (Arc::default(), Arc::default(), Arc::new(script) as Script);
        let mut tasks = JoinSet::new();
        let (kept, counted) = (Arc::clone(&log), Arc::clone(&sent));
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                connections.spawn(serve(
                    stream,
                    Arc::clone(&script),
                    Arc::clone(&kept),
                    Arc::clone(&counted),
                ));
            }
        });
        Self { address, log, sent, _tasks: tasks }
    }

    /// Everything that was asked so far.
    pub(super) fn asked(&self) -> Vec<Asked> {
        self.log.lock().unwrap().clone()
    }

    /// Bytes of bodies that were sent so far.
    pub(super) fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }
}

/// One request of a connection; whoever goes away ends it.
async fn serve(stream: TcpStream, script: Script, log: Arc<Mutex<Vec<Asked>>>, sent: Arc<AtomicU64>) {
    let mut stream = BufReader::new(stream);
    let (mut asked, mut line) = (Asked::default(), String::new());
    while stream.read_line(&mut line).await.is_ok_and(|count| count > 2) {
        let text = line.trim_end();
        if let Some(path) = text.strip_prefix("GET ") {
            asked.path = path.split(' ').next().unwrap_or_default().to_owned();
        } else if let Some((name, value)) = text.split_once(": ") {
            match name.to_ascii_lowercase().as_str() {
                "authorization" => asked.authorization = Some(value.to_owned()),
                "range" => asked.from = value.trim_matches(|c: char| !c.is_ascii_digit()).parse().ok(),
                _ => {}
            }
        }
        line.clear();
    }
    log.lock().unwrap().push(asked.clone());
    let answer = script(&asked);
    let length = answer.length.map(|length| format!("content-length: {length}\r\n")).unwrap_or_default();
    let head = format!("HTTP/1.1 {} X\r\nconnection: close\r\n{length}{}\r\n", answer.status, answer.headers);
    let _ = stream.write_all(head.as_bytes()).await;
    let _ = stream.write_all(&answer.body).await;
    match answer.then {
        Then::Close => {}
        Then::Silence => std::future::pending().await,
        Then::Again(part, rest) => {
            while stream.write_all(&part).await.is_ok() {
                sent.fetch_add(part.len() as u64, Ordering::Relaxed);
                tokio::time::sleep(rest).await;
            }
        }
    }
}
