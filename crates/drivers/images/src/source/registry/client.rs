//! Requests to a registry: redirects, tokens, documents. Every answer has a limit of size and of time.

use std::time::Duration;

use microvm_durable::error::bad_input;
use microvm_ports::StorageError;
use reqwest::header::{ACCEPT, AUTHORIZATION, HeaderValue, LOCATION, RANGE, RETRY_AFTER};
use reqwest::{Certificate, Client, Response, StatusCode, Url, redirect};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use tokio::sync::Mutex;

use super::patience::{Failed, Patience, Tries};
use super::reach::{OutOfReach, Reach};
use super::reference::Reference;
use super::token;

/// Redirects that are followed for one request.
const REDIRECTS_MAX: usize = 5;

/// One image's part of a registry, asked as anybody.
#[derive(Debug)]
pub(super) struct Registry {
    http: Client,
    /// `…/v2/<path>/`.
    base: Url,
    path: String,
    reach: Reach,
    /// Shown to the registry only.
    token: Mutex<Option<HeaderValue>>,
    pub(super) patience: Patience,
}

impl Registry {
    /// Makes ready; nothing is asked yet.
    pub(super) async fn new(
        reference: &Reference,
        plain_http: bool,
        authorities: Option<&str>,
        patience: Patience,
    ) -> Result<Self, StorageError> {
        let scheme = if plain_http { "http" } else { "https" };
        let base = format!("{scheme}://{}/v2/{}/", reference.registry, reference.path);
        let base = Url::parse(&base).map_err(|error| {
            bad_input(format!("the registry `{}`", reference.registry), error.to_string())
        })?;
        // Two parts of one program may both do this; the second finds it done.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let reach = Reach::of(&base).await;
        let mut http = Client::builder()
            .user_agent(concat!("microvm/", env!("CARGO_PKG_VERSION")))
            // Each address is checked before it is asked, and what is shown to it decided.
            .redirect(redirect::Policy::none())
            .referer(false)
            .dns_resolver(reach.clone())
            .connect_timeout(patience.connect)
            .tls_certs_merge(authorities.map(trusted).transpose()?.unwrap_or_default());
        if plain_http {
            // For registries on this host, which no proxy knows.
            http = http.no_proxy();
        }
        let http = http.build().map_err(|error| StorageError::Registry(explained(&error)))?;
        let path = reference.path.clone();
        Ok(Self { http, base, path, reach, token: Mutex::default(), patience })
    }

    /// A whole small answer and its media type, asked for until it comes.
    pub(super) async fn document(
        &self,
        below: &str,
        accept: &str,
        most: u64,
    ) -> Result<Document, StorageError> {
        let mut tries = Tries::new(self.patience);
        loop {
            let attempt = async {
                let response = self.get(below, Some(accept), 0).await?;
                let digest = response.headers().get("docker-content-digest");
                let digest = digest.and_then(|value| value.to_str().ok()).map(str::to_owned);
                Ok(Document { bytes: self.whole(response, most).await?, digest })
            };
            match attempt.await {
                Ok(document) => return Ok(document),
                Err(failed) => tries.rest(failed).await?,
            }
        }
    }

    /// One request, with a token if the registry wants one. From byte `from` on, if that is not the first.
    pub(super) async fn get(&self, below: &str, accept: Option<&str>, from: u64) -> Result<Response, Failed> {
        let url = self.base.join(below).map_err(|error| Failed::finally(error.to_string()))?;
        let mut response = self.follow(url.clone(), accept, from).await?;
        // Others that the registry sent us on to get no token, so they may not ask for one.
        if response.status() == StatusCode::UNAUTHORIZED && self.is_own(response.url()) {
            let wanted = token::wanted(response.headers(), &self.path)?;
            drop(response);
            // Not the old one, should it have become too old.
            *self.token.lock().await = None;
            let answer = self.follow(wanted, None, 0).await?;
            let answer = self.whole(judged(answer)?, token::ANSWER_MAX).await?;
            *self.token.lock().await = Some(token::read(&answer)?);
            response = self.follow(url, accept, from).await?;
        }
        judged(response)
    }

    /// Follows redirects as far as they may lead.
    async fn follow(&self, mut url: Url, accept: Option<&str>, from: u64) -> Result<Response, Failed> {
        for _ in 0..=REDIRECTS_MAX {
            self.reach.check(&url).map_err(Failed::finally)?;
            let mut request = self.http.get(url.clone());
            if let Some(accept) = accept {
                request = request.header(ACCEPT, accept);
            }
            if from > 0 {
                request = request.header(RANGE, format!("bytes={from}-"));
            }
            if self.is_own(&url)
                && let Some(token) = self.token.lock().await.clone()
            {
                request = request.header(AUTHORIZATION, token);
            }
            let answer = tokio::time::timeout(self.patience.answer, request.send()).await;
            let answer = answer
                .map_err(|_| Failed::again(format!("it did not answer within {:?}", self.patience.answer)))?;
            let response = answer.map_err(|error| of_request(&error))?;
            if !response.status().is_redirection() {
                return Ok(response);
            }
            let location = response.headers().get(LOCATION).and_then(|value| value.to_str().ok());
            let next = location.and_then(|location| url.join(location).ok());
            url = next.ok_or_else(|| Failed::finally("it sends us on to nowhere"))?;
        }
        Err(Failed::finally(format!("it sends us on more than {REDIRECTS_MAX} times")))
    }

    /// True if `url` is the registry's own: scheme, host and port.
    fn is_own(&self, url: &Url) -> bool {
        url.origin() == self.base.origin()
    }

    /// Takes an answer to its end.
    async fn whole(&self, mut response: Response, most: u64) -> Result<Vec<u8>, Failed> {
        let large = || Failed::finally(format!("it sends more than {most} bytes where a document should be"));
        if response.content_length().is_some_and(|length| length > most) {
            return Err(large());
        }
        let read = async {
            let mut bytes = Vec::new();
            while let Some(part) = response.chunk().await.map_err(|error| of_request(&error))? {
                if bytes.len() as u64 + part.len() as u64 > most {
                    return Err(large());
                }
                bytes.extend_from_slice(&part);
            }
            Ok(bytes)
        };
        let limit = self.patience.document;
        let slow = || Failed::again(format!("it did not send a document within {limit:?}"));
        tokio::time::timeout(limit, read).await.unwrap_or_else(|_| Err(slow()))
    }
}

/// A small answer.
#[derive(Debug)]
pub(super) struct Document {
    pub(super) bytes: Vec<u8>,
    /// The digest that the registry says it has.
    pub(super) digest: Option<String>,
}

/// An answer that is none of success, as an error.
fn judged(response: Response) -> Result<Response, Failed> {
    let status = response.status();
    let (code, host) = (status.as_u16(), response.url().host_str().unwrap_or_default());
    match code {
        200..=299 => Ok(response),
        401 | 403 => Err(Failed::finally(format!(
            "{host} refuses it to anybody ({status}): it does not exist there, or needs a login, which is not supported"
        ))),
        404 => Err(Failed::finally(format!("{host} does not have it ({status}): check the reference"))),
        408 | 429 | 500.. => {
            let after = response.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok());
            let after = after.and_then(|seconds| seconds.parse().ok()).map(Duration::from_secs);
            Err(Failed::Again(format!("{host} answers {status}"), after))
        }
        _ => Err(Failed::finally(format!("{host} answers {status}"))),
    }
}

/// A failure of the connection. A certificate that is not trusted, or an address that must not be reached, will not be
/// better a second later.
pub(super) fn of_request(error: &reqwest::Error) -> Failed {
    let (text, untrusted) = (explained(error), is_certificate_refused(error));
    if untrusted || error.is_builder() || is_out_of_reach(error) {
        return Failed::finally(text);
    }
    Failed::again(text)
}

/// The whole chain: "error sending request" alone explains nothing.
fn explained(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let said = cause.to_string();
        if !text.contains(&said) {
            text = format!("{text}: {said}");
        }
        source = cause.source();
    }
    if is_certificate_refused(error) {
        text.push_str(
            "; if the registry's authority is one of your own, name its certificate with --ca-file",
        );
    }
    text
}

/// True if this is, holds or comes from the refusal of a certificate.
fn is_certificate_refused(error: &(dyn std::error::Error + 'static)) -> bool {
    let inner = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
    let refused = |error: &rustls::Error| matches!(error, rustls::Error::InvalidCertificate(_));
    error.downcast_ref::<rustls::Error>().is_some_and(refused)
        || inner.is_some_and(|inner| is_certificate_refused(inner))
        || error.source().is_some_and(is_certificate_refused)
}

/// True if this comes from a name that leads where it must not.
fn is_out_of_reach(error: &(dyn std::error::Error + 'static)) -> bool {
    error.is::<OutOfReach>() || error.source().is_some_and(is_out_of_reach)
}

/// Authorities as the client takes them. One that cannot be read would trust nobody, and say so only later.
fn trusted(authorities: &str) -> Result<Vec<Certificate>, StorageError> {
    let refused = |reason: String| bad_input("the file of trusted authorities", reason);
    let mut all = Vec::new();
    for certificate in CertificateDer::pem_slice_iter(authorities.as_bytes()) {
        let certificate = certificate.map_err(|error| refused(format!("it is not PEM: {error}")))?;
        let unusable = |error: String| refused(format!("it holds no usable certificate: {error}"));
        let mut one = rustls::RootCertStore::empty();
        one.add(certificate.clone()).map_err(|error| unusable(error.to_string()))?;
        all.push(Certificate::from_der(&certificate).map_err(|error| unusable(error.to_string()))?);
    }
    if all.is_empty() {
        return Err(refused("it holds no certificate: `BEGIN CERTIFICATE` is missing".into()));
    }
    Ok(all)
}
