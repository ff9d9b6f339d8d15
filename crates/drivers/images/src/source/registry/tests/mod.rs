//! Registries that behave, and registries that do not.

mod fake;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use camino::Utf8PathBuf;
use serde_json::json;

use self::fake::{Answer, Asked, Fake};
use super::*;

/// A limit that is reached.
const MOMENT: Duration = Duration::from_secs(1);

/// A limit that is not reached, also where the host is busy.
const LONG: Duration = Duration::from_secs(30);

fn patience(limit: Duration) -> Patience {
    Patience {
        connect: limit,
        answer: limit,
        document: limit,
        window: limit,
        least: 1 << 20,
        tries: 3,
        progress: 16 << 20,
        rest: Duration::from_millis(1),
        manifest: LONG,
        image: LONG,
    }
}

fn digest(bytes: &[u8]) -> String {
    format!("sha256:{}", sha256(bytes))
}

fn layer() -> Vec<u8> {
    (0..300_000u32).flat_map(|n| n.to_le_bytes()).collect()
}

/// Docker's list of manifests, the manifest of this machine, its configuration and its layer.
struct Image {
    list: Vec<u8>,
    manifest: Vec<u8>,
    config: Vec<u8>,
    layer: Vec<u8>,
}

impl Image {
    fn new() -> Self {
        let (config, layer) = (b"{}".to_vec(), layer());
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.docker.distribution.manifest.v2+json",
            "config": {"mediaType": "x", "digest": digest(&config), "size": config.len()},
            "layers": [{"mediaType": "x", "digest": digest(&layer), "size": layer.len()}],
        })
        .to_string()
        .into_bytes();
        let architecture = if cfg!(target_arch = "x86_64") { "amd64" } else { "arm64" };
        let list = json!({"manifests": [
            {"digest": digest(b"other"), "size": 5, "platform": {"os": "linux", "architecture": "s390x"}},
            {"digest": digest(&manifest), "size": manifest.len(), "platform": {"os": "linux", "architecture": architecture}},
        ]})
        .to_string()
        .into_bytes();
        Self { list, manifest, config, layer }
    }

    fn answer(&self, asked: &Asked) -> Answer {
        let path = asked.path.as_str();
        let known = [&self.manifest, &self.config, &self.layer];
        let found = known.into_iter().find(|piece| path.ends_with(&digest(piece)));
        match found {
            Some(piece) => Answer::of(200, piece.clone()),
            None if path.ends_with("manifests/1") => Answer::of(200, self.list.clone()),
            None => Answer::of(404, ""),
        }
    }

    fn is_layer(&self, asked: &Asked) -> bool {
        asked.path.ends_with(&digest(&self.layer))
    }
}

/// Pulls `a/b:1`; gives what came, or the error as text, and holds it against the time it may take.
async fn pull_from(address: &str, version: &str) -> Result<(tempfile::TempDir, Utf8PathBuf), String> {
    pull_within(patience(LONG), address, version).await
}

async fn pull_within(
    patience: Patience,
    address: &str,
    version: &str,
) -> Result<(tempfile::TempDir, Utf8PathBuf), String> {
    let folder = tempfile::tempdir().unwrap();
    let layout = Utf8PathBuf::from_path_buf(folder.path().join("layout")).unwrap();
    let reference = format!("{address}/a/b{version}");
    let from = From { reference: &reference, plain_http: true, authorities: None, login: None };
    let begun = Instant::now();
    let pulled = super::pull_within(from, patience, &layout, 1 << 30, &Progress::ignored()).await;
    assert!(begun.elapsed() < Duration::from_secs(20), "it took {:?}", begun.elapsed());
    pulled.map(|()| (folder, layout)).map_err(|error| error.to_string())
}

async fn refused(script: impl Fn(&Asked) -> Answer + Send + Sync + 'static, reason: &str) -> Fake {
    refused_within(patience(LONG), script, reason).await
}

async fn refused_within(
    patience: Patience,
    script: impl Fn(&Asked) -> Answer + Send + Sync + 'static,
    reason: &str,
) -> Fake {
    let fake = Fake::start(script).await;
    let error = pull_within(patience, &fake.address, ":1").await.expect_err("it was taken");
    assert!(error.contains(reason), "{error}");
    fake
}

#[tokio::test]
async fn an_image_is_pulled_with_token_redirect_and_resumption() {
    let image = Image::new();
    let store = Fake::start(move |asked| {
        let layer = layer();
        // It breaks off twice; then the rest comes.
        let from = asked.from.unwrap_or(0);
        let to = (from + 500_000).min(layer.len());
        let status = if from > 0 { 206 } else { 200 };
        Answer::of(status, &layer[from..to])
            .saying(Some(layer.len() - from))
            .with("content-range", format!("bytes {from}-{}/{}", layer.len() - 1, layer.len()))
    })
    .await;
    let tokens = Fake::start(|_| Answer::of(200, r#"{"access_token":"secret"}"#)).await;
    let (realm, away) = (format!("http://{}/token?a=b", tokens.address), format!("http://{}", store.address));
    let registry = Fake::start(move |asked| match asked.authorization.as_deref() {
        Some("Bearer secret") if image.is_layer(asked) => {
            Answer::of(307, "").with("location", format!("{away}/layer?signed=1"))
        }
        Some("Bearer secret") => image.answer(asked),
        _ => Answer::of(401, "").with("www-authenticate", format!("Bearer realm=\"{realm}\",service=\"s\"")),
    })
    .await;
    let (_folder, layout) = pull_from(&registry.address, ":1").await.unwrap();
    let image = Image::new();
    for piece in [&image.manifest, &image.config, &image.layer] {
        let path = layout.join("blobs").join(digest(piece).replace(':', "/"));
        assert!(std::fs::read(&path).unwrap() == *piece, "{path}");
    }
    assert_eq!(tokens.asked()[0].path, "/token?a=b&service=s&scope=repository%3Aa%2Fb%3Apull");
    assert_eq!(tokens.asked().len(), 1, "a token is kept");
    let parts: Vec<_> = store.asked().iter().map(|asked| (asked.from, asked.authorization.clone())).collect();
    assert_eq!(
        parts,
        [(None, None), (Some(500_000), None), (Some(1_000_000), None)],
        "the token stays at home"
    );
}

#[tokio::test]
async fn what_never_ends_is_given_up() {
    const PART: usize = 64 << 10;
    let part = || vec![b' '; PART];
    let endless = move || Answer::of(200, "").saying(None).then_again(part(), Duration::ZERO);
    let manifest = refused(move |_| endless(), "more than 4194304 bytes").await;
    assert!(manifest.sent() < 32 << 20, "{}", manifest.sent());
    assert_eq!(manifest.asked().len(), 1);
    let announced =
        refused(|_| Answer::of(200, "").saying(Some(1 << 40)).then_silence(), "more than 4194304").await;
    assert_eq!(announced.asked().len(), 1);
    let token = Fake::start(move |_| endless()).await;
    let realm = format!("http://{}/", token.address);
    let challenge =
        move |_: &Asked| Answer::of(401, "").with("www-authenticate", format!("Bearer realm=\"{realm}\""));
    refused(challenge, "more than 131072 bytes").await;
    assert!(token.sent() < 32 << 20, "{}", token.sent());
    let image = Image::new();
    let piece = refused(
        move |asked| if image.is_layer(asked) { endless() } else { image.answer(asked) },
        "longer than the 1200000 bytes",
    )
    .await;
    assert!(piece.sent() < 32 << 20, "{}", piece.sent());
    let head = refused(|_| Answer::of(200, "").with("x-long", "a".repeat(8 << 20)), "tries").await;
    assert!(head.asked().len() <= 3);
    refused(|_| (0..10_000).fold(Answer::of(200, ""), |all, n| all.with("x-many", n)), "tries").await;
}

#[tokio::test]
async fn what_is_too_slow_is_given_up() {
    let image = Image::new();
    let drip = move |asked: &Asked| {
        if image.is_layer(asked) {
            Answer::of(200, "").saying(None).then_again(vec![0; 100], MOMENT / 10)
        } else {
            image.answer(asked)
        }
    };
    // A listener that never answers.
    let nobody = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = nobody.local_addr().unwrap().to_string();
    let (moment, document) = (patience(MOMENT), "document within");
    let (_, _, _, unheard) = tokio::join!(
        refused_within(moment, |_| Answer::of(200, "{").saying(None).then_again(" ", MOMENT / 10), document),
        refused_within(moment, |_| Answer::of(200, "").saying(None).then_silence(), document),
        refused_within(moment, drip, "less than 1048576 bytes in"),
        pull_within(moment, &address, ":1"),
    );
    let error = unheard.err().unwrap();
    assert!(error.contains("did not answer within"), "{error}");
}

#[tokio::test]
async fn answers_that_are_each_in_time_have_an_end_together() {
    // As long as each answer brings a little, and each try a little more, none of the other limits is reached.
    let busy = |_: &Asked| Answer::of(503, "").with("retry-after", 1);
    let patient = Patience { tries: 1000, ..patience(LONG) };
    let manifest = Patience { manifest: MOMENT, ..patient };
    let image = Image::new();
    let drip = move |asked: &Asked| {
        if image.is_layer(asked) {
            Answer::of(200, "").saying(None).then_again(vec![0; 100], MOMENT / 10)
        } else {
            image.answer(asked)
        }
    };
    let whole = Patience { least: 1, image: MOMENT * 2, ..patient };
    tokio::join!(
        refused_within(manifest, busy, "did not send a manifest within 1s"),
        refused_within(whole, drip, "did not send the image within 2s"),
    );
}

#[tokio::test]
async fn layers_are_counted_before_they_are_asked_for() {
    let layers: Vec<_> =
        (0..1001).map(|n| json!({"digest": digest(format!("{n}").as_bytes()), "size": 1})).collect();
    let config = json!({"digest": digest(b"{}"), "size": 2});
    let manifest = json!({"schemaVersion": 2, "config": config, "layers": layers}).to_string();
    let fake = refused(move |_| Answer::of(200, manifest.clone()), "at most 1000 are taken").await;
    assert_eq!(fake.asked().len(), 1);
}

#[tokio::test]
async fn a_registry_cannot_send_us_where_it_likes() {
    let to = |location: &'static str| move |_: &Asked| Answer::of(302, "").with("location", location);
    refused(to("/v2/a/b/manifests/1"), "more than 5 times").await;
    refused(to("http://169.254.169.254/latest/meta-data"), "link-local addresses are refused").await;
    refused(to("http://10.0.0.1/"), "private addresses are refused").await;
    refused(to("http://registry.test/"), "plain HTTP is only for this host").await;
    refused(to("file:///etc/passwd"), "to file is refused").await;
    refused(to("http://user:word@127.0.0.1/"), "credentials").await;
    refused(|_| Answer::of(302, ""), "on to nowhere").await;
    let realm = |realm: &'static str| {
        move |_: &Asked| Answer::of(401, "").with("www-authenticate", format!("Bearer realm=\"{realm}\""))
    };
    refused(realm("http://169.254.169.254/token"), "link-local addresses are refused").await;
    refused(realm("https://192.168.0.1/token"), "private addresses are refused").await;
    refused(|_| Answer::of(401, "").with("www-authenticate", "Basic realm=\"x\""), "wants a login").await;
}

#[tokio::test]
async fn what_is_not_what_its_digest_says_is_refused() {
    let image = Image::new();
    let other = move |asked: &Asked| {
        if image.is_layer(asked) { Answer::of(200, vec![7; 1_200_000]) } else { image.answer(asked) }
    };
    refused(other, "has another content").await;
    let image = Image::new();
    refused(
        move |asked| {
            if asked.path.ends_with(&digest(&image.manifest)) {
                Answer::of(200, image.list.clone())
            } else {
                image.answer(asked)
            }
        },
        "should have the digest",
    )
    .await;
    let lie = |_: &Asked| Answer::of(200, Image::new().manifest).with("docker-content-digest", digest(b"x"));
    refused(lie, "should have the digest").await;
    let image = Image::new();
    let broken = move |asked: &Asked| {
        if image.is_layer(asked) {
            Answer::of(200, &image.layer[..1000]).saying(Some(image.layer.len()))
        } else {
            image.answer(asked)
        }
    };
    let truncated = refused(broken, "(3 tries)").await;
    assert_eq!(truncated.asked().iter().filter(|asked| asked.from.is_some()).count(), 2);
}

#[tokio::test]
async fn a_piece_that_breaks_off_behind_its_last_byte_is_whole() {
    let image = Image::new();
    let registry = Fake::start(move |asked| {
        if !image.is_layer(asked) {
            return image.answer(asked);
        }
        match asked.from {
            // In chunks, of which the last never comes.
            None => {
                let size = format!("{:x}\r\n", image.layer.len());
                Answer::of(200, [size.as_bytes(), &image.layer, b"\r\n"].concat())
                    .saying(None)
                    .with("transfer-encoding", "chunked")
            }
            Some(_) => Answer::of(416, ""),
        }
    })
    .await;
    let (_folder, layout) = pull_from(&registry.address, ":1").await.unwrap();
    let path = layout.join("blobs").join(digest(&layer()).replace(':', "/"));
    assert!(std::fs::read(path).unwrap() == layer());
}

#[tokio::test]
async fn passing_trouble_and_registries_without_ranges_are_borne() {
    let (image, count) = (Image::new(), AtomicUsize::new(0));
    let registry = Fake::start(move |asked| {
        let turn = count.fetch_add(1, Ordering::Relaxed);
        match turn {
            0 => Answer::of(503, "").with("retry-after", 0),
            1 => Answer::of(429, ""),
            _ if image.is_layer(asked) && asked.from.is_none() => {
                Answer::of(200, &image.layer[..1000]).saying(Some(image.layer.len()))
            }
            // All of it again, though the rest was asked for.
            _ => image.answer(asked),
        }
    })
    .await;
    let (_folder, layout) = pull_from(&registry.address, ":1").await.unwrap();
    let path = layout.join("blobs").join(digest(&layer()).replace(':', "/"));
    assert!(std::fs::read(path).unwrap() == layer());
    let asked = registry.asked().len();
    let error = pull_from(&registry.address, ":absent").await.err().unwrap();
    assert!(error.contains("404"), "{error}");
    assert_eq!(registry.asked().len(), asked + 1, "what is not there is not asked for again");
}

#[test]
fn plain_http_is_for_this_host_only() {
    for registry in ["localhost:5000", "127.0.0.1:5000", "[::1]:5000", "localhost"] {
        assert!(is_loopback(registry), "{registry}");
    }
    for registry in ["example.com", "10.0.0.1:5000", "localhost.example.com:80"] {
        assert!(!is_loopback(registry), "{registry}");
    }
}

/// Pulls `a/b:1` as a user.
async fn pull_as(address: &str, user: &str, password: &str) -> Result<(), String> {
    let folder = tempfile::tempdir().unwrap();
    let layout = Utf8PathBuf::from_path_buf(folder.path().join("layout")).unwrap();
    let reference = format!("{address}/a/b:1");
    let login = RegistryLogin { user: user.to_owned(), password: password.to_owned() };
    let from = From { reference: &reference, plain_http: true, authorities: None, login: Some(&login) };
    let pulled = super::pull_within(from, patience(LONG), &layout, 1 << 30, &Progress::ignored()).await;
    pulled.map_err(|error| error.to_string())
}

/// `ann:secret`.
const LOGIN: &str = "Basic YW5uOnNlY3JldA==";

#[tokio::test]
async fn a_login_is_shown_to_the_registry_that_wants_it_and_to_nobody_else() {
    let image = std::sync::Arc::new(Image::new());
    let away = Fake::start({
        let image = std::sync::Arc::clone(&image);
        move |asked| image.answer(asked)
    })
    .await;
    let there = format!("http://{}", away.address);
    let registry = Fake::start(move |asked| match asked.authorization.as_deref() {
        Some(LOGIN) if image.is_layer(asked) => {
            Answer::of(307, "").with("location", format!("{there}{}", asked.path))
        }
        Some(LOGIN) => image.answer(asked),
        _ => Answer::of(401, "").with("www-authenticate", "Basic realm=\"x\""),
    })
    .await;
    pull_as(&registry.address, "ann", "secret").await.unwrap();
    // It is shown only after it was asked for, and not where a redirect leads.
    assert_eq!(registry.asked()[0].authorization, None);
    assert!(!away.asked().is_empty() && away.asked().iter().all(|asked| asked.authorization.is_none()));
    let error = pull_as(&registry.address, "ann", "other").await.unwrap_err();
    assert!(error.contains("with this login") && !error.contains("other"), "{error}");
}

#[tokio::test]
async fn a_login_gets_a_token_where_tokens_are_given_out() {
    let tokens = Fake::start(|asked| match asked.authorization.as_deref() {
        Some(LOGIN) => Answer::of(200, r#"{"token":"of-ann"}"#),
        _ => Answer::of(401, ""),
    })
    .await;
    let realm = format!("http://{}/token", tokens.address);
    let image = Image::new();
    let registry = Fake::start(move |asked| match asked.authorization.as_deref() {
        Some("Bearer of-ann") => image.answer(asked),
        _ => Answer::of(401, "").with("www-authenticate", format!("Bearer realm=\"{realm}\",service=\"s\"")),
    })
    .await;
    pull_as(&registry.address, "ann", "secret").await.unwrap();
    assert!(registry.asked().iter().all(|asked| asked.authorization.as_deref() != Some(LOGIN)));
    let error = pull_as(&registry.address, "bob", "secret").await.unwrap_err();
    assert!(error.contains("with this login"), "{error}");
}
