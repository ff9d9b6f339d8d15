//! Lists of a guest as answers: charged while they are held, and written entry by entry. As JSON they may be six times as
//! long as they are here.

use std::convert::Infallible;

use axum::body::Body;
use bytes::Bytes;
use microvm_api::operation::Json;
use serde::Serialize;
use serde_json::Value;

use crate::charge::Charge;
use crate::failure::Failure;
use crate::reply::Reply;

/// Bytes of JSON that are written together.
const PIECE: usize = 16 << 10;

/// `bare`, an object, with `entries` as its field `name`. `behind` tells the bytes behind the pointers of an entry.
pub(crate) fn answer<L: Serialize, T: Serialize + Send + 'static>(
    charge: &Charge,
    bare: &L,
    name: &str,
    entries: Vec<T>,
    behind: impl Fn(&T) -> usize,
) -> Result<Reply<Json<L>>, Failure> {
    let held: usize = entries.iter().map(|entry| size_of::<T>() + behind(entry)).sum();
    charge.hold(held)?;
    let mut fields = serde_json::to_value(bare).unwrap_or_default();
    if let Some(fields) = fields.as_object_mut() {
        fields.remove(name);
    }
    let mut head = fields.to_string();
    // The closing brace comes back after the entries.
    head.pop();
    let comma = if head.len() > 1 { "," } else { "" };
    let head = format!("{head}{comma}{}:[", Value::from(name));
    let (mut entries, mut first) = (entries.into_iter(), true);
    let pieces = std::iter::from_fn(move || {
        let mut piece = Vec::new();
        while piece.len() < PIECE {
            let Some(entry) = entries.next() else { break };
            if !std::mem::take(&mut first) {
                piece.push(b',');
            }
            // Into memory, and the types of lists have text for keys: it cannot fail.
            let _ = serde_json::to_writer(&mut piece, &entry);
        }
        (!piece.is_empty()).then(|| Bytes::from(piece))
    });
    let text =
        std::iter::once(Bytes::from(head)).chain(pieces).chain(std::iter::once(Bytes::from_static(b"]}")));
    let body = Body::from_stream(futures_util::stream::iter(text.map(Ok::<_, Infallible>)));
    Ok(Reply::written(body))
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt as _;
    use serde_json::json;

    use super::*;
    use crate::caller::Peer;
    use crate::share::Budget;

    #[tokio::test(flavor = "current_thread")]
    async fn lists_are_written_whole_and_charged() {
        let budget = Budget::of(4 << 20);
        let charge = Charge::of(&budget, Peer(None)).unwrap();
        for count in [0, 1, 5000] {
            let entries: Vec<String> = (0..count).map(|n| format!("\u{1}{n}")).collect();
            let bare = json!({"success": true, "entries": []});
            let wanted = json!({"success": true, "entries": entries});
            let response = answer(&charge, &bare, "entries", entries, String::capacity).unwrap();
            let body = response.into_response().into_body().collect().await.unwrap().to_bytes();
            assert_eq!(serde_json::from_slice::<Value>(&body).unwrap(), wanted);
        }
        let bare = answer(&charge, &json!({}), "x", vec![1], |_| 0).unwrap();
        assert_eq!(bare.into_response().into_body().collect().await.unwrap().to_bytes(), r#"{"x":[1]}"#);
        assert!(budget.taken() > 5000);
        let large = answer(&charge, &json!({}), "x", vec![0u8; 3 << 20], |_| 0);
        assert_eq!(large.err().unwrap().0.code, "server_busy");
    }
}
