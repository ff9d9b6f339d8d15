//! Answers that come line by line (NDJSON).

use std::pin::Pin;

use axum::body::Body;
use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use microvm_api::operation::Lines;
use microvm_api::progress::ProgressLine;
use microvm_ports::Progress;
use serde::Serialize;
use tokio::sync::mpsc;

use crate::failure::Failure;
use crate::reply::Reply;

/// Reports that may wait for a slow reader; later ones are dropped, the work is never held up by them.
const REPORTS_MAX: usize = 64;

/// Values as lines.
pub(crate) fn lines<T: Serialize>(values: impl Stream<Item = T> + Send + 'static) -> Reply<Lines<T>> {
    let body = values.map(|value| {
        serde_json::to_vec(&value).map(|mut line| {
            line.push(b'\n');
            Bytes::from(line)
        })
    });
    Reply::lines(Body::from_stream(body))
}

/// Work that reports its progress as lines and ends with its outcome. A caller who goes away ends the work.
pub(crate) fn progress<F>(work: impl FnOnce(Progress) -> F) -> Reply<Lines<ProgressLine>>
where
    F: Future<Output = Result<ProgressLine, Failure>> + Send + 'static,
{
    let (report, reports) = mpsc::channel(REPORTS_MAX);
    let sink = Progress::to(move |report_now| {
        let line =
            ProgressLine::Progress { step: report_now.step, done: report_now.done, total: report_now.total };
        // A full queue only makes the display coarser.
        let _ = report.try_send(line);
    });
    lines(Work { outcome: Some(Box::pin(work(sink))), reports, last: None }.stream())
}

struct Work<F> {
    outcome: Option<Pin<Box<F>>>,
    reports: mpsc::Receiver<ProgressLine>,
    last: Option<ProgressLine>,
}

impl<F: Future<Output = Result<ProgressLine, Failure>> + Send + 'static> Work<F> {
    fn stream(self) -> impl Stream<Item = ProgressLine> + Send + 'static {
        futures_util::stream::unfold(self, |mut this| async move {
            loop {
                let Some(outcome) = this.outcome.as_mut() else {
                    let line = this.reports.try_recv().ok().or_else(|| this.last.take());
                    return line.map(|line| (line, this));
                };
                tokio::select! {
                    biased;
                    // Reports before the outcome, which is the last line of an answer.
                    Some(line) = this.reports.recv() => return Some((line, this)),
                    result = outcome => {
                        this.outcome = None;
                        this.last = Some(result.unwrap_or_else(|failure| ProgressLine::Failed { problem: *failure.0 }));
                    }
                }
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;

    use super::*;

    #[tokio::test(flavor = "current_thread")]
    async fn reports_come_before_the_outcome() {
        let response = progress(|progress| async move {
            progress.step("one");
            progress.advance("one", 1, Some(2));
            Ok(ProgressLine::Damage { findings: Vec::new() })
        });
        let body = response.into_response().into_body().collect().await.unwrap().to_bytes();
        let text = String::from_utf8(body.to_vec()).unwrap();
        let kinds: Vec<serde_json::Value> =
            text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let kinds: Vec<&str> = kinds.iter().map(|line| line["type"].as_str().unwrap()).collect();
        assert_eq!(kinds, ["progress", "progress", "damage"]);
    }
}
