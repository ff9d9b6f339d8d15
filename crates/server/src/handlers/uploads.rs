//! Bounds of what is written into guests: how much at once, and where.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use axum::http::HeaderMap;
use axum::http::header::CONTENT_LENGTH;
use futures_util::{Stream, StreamExt as _};
use microvm_api::Problem;
use microvm_core::GuestLease;
use microvm_ports::GuestError;
use microvm_types::files::FileKind;
use microvm_types::{Action, ErrorKind};

use crate::bounds::Bounds;
use crate::failure::Failure;

/// Refuses a place outside of the upload root. Names are looked at first, then the entries of the guest on the way, since a
/// symbolic link may lead elsewhere. It guards against mistakes: whoever may run commands may write anywhere.
///
/// # Errors
/// `upload_outside`; errors of the guest.
pub(super) async fn admit(bounds: &Bounds, guest: &GuestLease, path: &[u8]) -> Result<(), Failure> {
    let Some(root) = bounds.upload_root.as_ref().map(|root| root.as_str()) else { return Ok(()) };
    // Nothing is outside of the whole: links may lead anywhere.
    if parts(root.as_bytes()).is_empty() {
        return Ok(());
    }
    for place in below(root, path)? {
        let kind = guest.stat(&place).await.map(|stat| stat.kind);
        if !leads_on(root, &place, kind)? {
            break;
        }
    }
    Ok(())
}

/// Whether the guest has something at a place below the root, so that the next one has to be looked at too.
fn leads_on(root: &str, place: &[u8], kind: Result<FileKind, GuestError>) -> Result<bool, Failure> {
    match kind {
        Ok(FileKind::Symlink) => {
            let link = String::from_utf8_lossy(place);
            Err(outside(root, &format!("`{link}` is a symbolic link, which may lead out of it")))
        }
        Ok(_) => Ok(true),
        // What is not there yet is made there.
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// The names in a path.
fn parts(path: &[u8]) -> Vec<Vec<u8>> {
    let parts = path.split(|byte| *byte == b'/').filter(|part| !part.is_empty() && *part != b".");
    parts.map(<[u8]>::to_vec).collect()
}

/// The places of the guest from below the root down to `path`.
fn below(root: &str, path: &[u8]) -> Result<Vec<Vec<u8>>, Failure> {
    let text = String::from_utf8_lossy(path);
    let (root_parts, parts) = (parts(root.as_bytes()), parts(path));
    if parts.iter().any(|part| part == b"..") {
        return Err(outside(root, &format!("`{text}` has `..` in it")));
    }
    if parts.len() < root_parts.len() || parts[..root_parts.len()] != root_parts {
        return Err(outside(root, &format!("`{text}` is not below it")));
    }
    let mut place: Vec<u8> = root_parts.iter().flat_map(|part| [b"/".as_slice(), part].concat()).collect();
    let mut places = Vec::new();
    for part in &parts[root_parts.len()..] {
        place.push(b'/');
        place.extend_from_slice(part);
        places.push(place.clone());
    }
    Ok(places)
}

fn outside(root: &str, why: &str) -> Failure {
    let detail = format!("this server takes files into {root} of a VM only, and {why}");
    Failure::new(ErrorKind::Forbidden, "upload_outside", detail)
}

/// The largest upload that is taken, and whether one was larger.
#[derive(Debug, Clone)]
pub(super) struct Cap {
    most: Option<u64>,
    exceeded: Arc<AtomicBool>,
}

impl Cap {
    /// The cap of an upload.
    pub(super) fn of(bounds: &Bounds) -> Self {
        Self { most: bounds.upload_bytes, exceeded: Arc::default() }
    }

    /// The same for a body of plain bytes: one that announces more is refused at once.
    pub(super) fn announced(bounds: &Bounds, headers: &HeaderMap) -> Result<Self, Failure> {
        let cap = Self::of(bounds);
        let bytes = headers.get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
        cap.check(bytes.unwrap_or(0))?;
        Ok(cap)
    }

    /// Refuses an upload of so many bytes.
    pub(super) fn check(&self, bytes: u64) -> Result<(), Failure> {
        if self.most.is_some_and(|most| bytes > most) {
            Err(self.refusal(": nothing of it is kept"))
        } else {
            Ok(())
        }
    }

    /// The stream, ended with an error where it becomes too long. Of a file nothing is kept then; archives are unpacked as they come.
    pub(super) fn on<T: Send + 'static>(
        &self,
        stream: impl Stream<Item = Result<T, GuestError>> + Send + 'static,
        length: fn(&T) -> u64,
    ) -> std::pin::Pin<Box<dyn Stream<Item = Result<T, GuestError>> + Send>> {
        let Some(most) = self.most else { return Box::pin(stream) };
        let (exceeded, mut taken) = (Arc::clone(&self.exceeded), 0u64);
        Box::pin(stream.map(move |part| {
            let part = part?;
            taken = taken.saturating_add(length(&part));
            if taken <= most {
                return Ok(part);
            }
            exceeded.store(true, Ordering::Relaxed);
            Err(GuestError::Source(format!("it has more than {most} bytes")))
        }))
    }

    /// The failure of a transfer, which this cap may have caused.
    pub(super) fn blame(&self, error: GuestError) -> Failure {
        let exceeded = self.exceeded.load(Ordering::Relaxed);
        if exceeded { self.refusal(": nothing of it is kept") } else { error.into() }
    }

    /// The same of an archive, with what stays of it.
    pub(super) fn blame_archive(&self, error: GuestError) -> Failure {
        let exceeded = self.exceeded.load(Ordering::Relaxed);
        let Failure(problem) = if exceeded { self.refusal("") } else { error.into() };
        let detail = format!("{}; what was unpacked of the archive before that stays", problem.detail);
        Failure(Box::new(Problem { message: detail.clone(), detail, ..*problem }))
    }

    /// `kept`: what becomes of that which came.
    fn refusal(&self, kept: &str) -> Failure {
        let most = self.most.unwrap_or(u64::MAX);
        let detail = format!("upload: it is larger than the limit of {most} bytes{kept}");
        let mut failure = Failure::too_large(detail);
        failure.0.field = Some("upload".to_owned());
        Failure(Box::new(failure.0.with_remedies(vec![Action::RaiseLimit.of("upload")])))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_below_a_root_are_named_and_others_refused() {
        let places = |path: &str| {
            let places = below("/tmp/in", path.as_bytes()).map_err(|failure| failure.0.detail)?;
            Ok::<_, String>(
                places.into_iter().map(|place| String::from_utf8(place).unwrap()).collect::<Vec<_>>(),
            )
        };
        assert_eq!(places("/tmp/in/a/b").unwrap(), ["/tmp/in/a", "/tmp/in/a/b"]);
        assert_eq!(places("//tmp/./in//a/").unwrap(), ["/tmp/in/a"]);
        assert!(places("/tmp/in").unwrap().is_empty());
        for path in [
            "/",
            "/tmp",
            "/tmp/inside",
            "/etc/tmp/in",
            "/tmp/in/../../etc/x",
            "/tmp/in/a/..",
            "/tmp/in/../in/a",
        ] {
            assert!(places(path).unwrap_err().contains("/tmp/in"), "{path}");
        }
        assert!(below("/", b"/etc/x").is_ok_and(|places| places.len() == 2));
    }

    #[test]
    fn links_on_the_way_are_refused_and_what_is_not_there_is_no_link() {
        let seen = |kind| leads_on("/tmp", b"/tmp/x", kind).map_err(|failure| failure.0.code);
        let refused = |kind| Err(GuestError::Refused { kind, message: String::new() });
        assert_eq!(seen(Ok(FileKind::Directory)), Ok(true));
        assert_eq!(seen(refused(ErrorKind::NotFound)), Ok(false));
        assert_eq!(seen(Ok(FileKind::Symlink)), Err("upload_outside".to_owned()));
        assert_eq!(seen(refused(ErrorKind::Forbidden)), Err("guest_refused".to_owned()));
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_stream_ends_with_an_error_beyond_the_limit() {
        let bounds = |upload_bytes| Bounds { upload_bytes, ..Bounds::default() };
        let take = async |most: Option<u64>| {
            let cap = Cap::of(&bounds(most));
            let parts = futures_util::stream::iter([3u64, 4].map(Ok));
            let outcome: Result<Vec<u64>, _> =
                cap.on(parts, |part| *part).collect::<Vec<_>>().await.into_iter().collect();
            outcome.map_err(|error| cap.blame(error).0)
        };
        assert_eq!(take(None).await.unwrap(), [3, 4]);
        assert_eq!(take(Some(7)).await.unwrap(), [3, 4]);
        let problem = take(Some(6)).await.unwrap_err();
        assert_eq!((problem.status, problem.field.as_deref()), (413, Some("upload")));
        // Announced: nothing is asked of the guest.
        let headers = HeaderMap::from_iter([(CONTENT_LENGTH, "7".parse().unwrap())]);
        assert!(
            Cap::announced(&bounds(Some(6)), &headers).is_err()
                && Cap::announced(&bounds(Some(7)), &headers).is_ok()
        );
        // Another error stays what it is.
        let cap = Cap::of(&bounds(Some(6)));
        assert_eq!(cap.blame(GuestError::Source("x".to_owned())).0.code, "source_failed");
    }
}
