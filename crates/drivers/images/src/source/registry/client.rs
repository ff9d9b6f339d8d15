//! Requests to a registry: redirects, tokens, documents. Every answer has a limit of size and of time.

use std::time::Duration;

use microvm_durable::error::bad_input;
use microvm_ports::StorageError;
use microvm_ports::storage::RegistryLogin;
use reqwest::header::{ACCEPT, AUTHORIZATION, HeaderValue, LOCATION, RANGE, RETRY_AFTER};
use reqwest::{Certificate, Client, Response, StatusCode, Url, redirect};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use tokio::sync::Mutex;

use super::patience::{Failed, Patience, Tries};
use super::reach::{OutOfReach, Reach};
use super::reference::Reference;
use super::token::{self, Wanted};

/// Redirects that are followed for one request.
const REDIRECTS_MAX: usize = 5;

/// One image's part of a registry.
#[derive(Debug)]
pub(super) struct Registry {
    http: Client,
    /// `…/v2/<path>/`.
    base: Url,
    path: String,
    reach: Reach,
    /// Shown to the registry, and to whoever gives out its tokens.
    login: Option<HeaderValue>,
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
        login: Option<&RegistryLogin>,
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
        let login = login.map(|login| basic(&http, &base, login)).transpose()?;
        Ok(Self { http, base, path, reach, login, token: Mutex::default(), patience })
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
        let mut response = self.follow(url.clone(), accept, from, None).await?;
        // Others that the registry sent us on to get no token, so they may not ask for one.
        if response.status() == StatusCode::UNAUTHORIZED && self.is_own(response.url()) {
            let wanted = token::wanted(response.headers(), &self.path)?;
            drop(response);
            // Not the old one, should it have become too old.
            *self.token.lock().await = None;
            let shown = match wanted {
                Wanted::Token(wanted) => self.token(wanted).await?,
                Wanted::Login => self
                    .login
                    .clone()
                    .ok_or_else(|| Failed::finally("the registry wants a login, and none was given"))?,
            };
            *self.token.lock().await = Some(shown);
            response = self.follow(url, accept, from, None).await?;
        }
        self.judged(response)
    }

    /// Asks an address for a token, with the login if there is one.
    async fn token(&self, wanted: Url) -> Result<HeaderValue, Failed> {
        if self.login.is_some() && wanted.scheme() != self.base.scheme() && wanted.scheme() != "https" {
            return Err(Failed::finally(format!(
                "the registry wants the login to be sent to {} without encryption",
                wanted.host_str().unwrap_or_default()
            )));
        }
        let answer = self.follow(wanted, None, 0, self.login.as_ref()).await?;
        token::read(&self.whole(self.judged(answer)?, token::ANSWER_MAX).await?)
    }

    fn judged(&self, response: Response) -> Result<Response, Failed> {
        judged(response, self.login.is_some())
    }

    /// Follows redirects as far as they may lead. `login` is for the address itself, not for where it leads.
    async fn follow(
        &self,
        mut url: Url,
        accept: Option<&str>,
        from: u64,
        login: Option<&HeaderValue>,
    ) -> Result<Response, Failed> {
        let first = url.origin();
        for _ in 0..=REDIRECTS_MAX {
            self.reach.check(&url).map_err(Failed::finally)?;
            let mut request = self.http.get(url.clone());
            if let Some(accept) = accept {
                request = request.header(ACCEPT, accept);
            }
            if from > 0 {
                request = request.header(RANGE, format!("bytes={from}-"));
            }
            if let Some(login) = login.filter(|_| url.origin() == first) {
                request = request.header(AUTHORIZATION, login.clone());
            } else if self.is_own(&url)
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
fn judged(response: Response, logged_in: bool) -> Result<Response, Failed> {
    let status = response.status();
    let (code, host) = (status.as_u16(), response.url().host_str().unwrap_or_default());
    match code {
        200..=299 => Ok(response),
        401 | 403 if logged_in => Err(Failed::finally(format!(
            "{host} refuses it with this login ({status}): the password is wrong or too old, it does not exist there, or this user may not read it"
        ))),
        401 | 403 => Err(Failed::finally(format!(
            "{host} refuses it to anybody ({status}): it does not exist there, or needs a login, and none was given"
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

/// The header that shows a login (RFC 7617).
fn basic(http: &Client, base: &Url, login: &RegistryLogin) -> Result<HeaderValue, StorageError> {
    let RegistryLogin { user, password } = login;
    let refused = |detail: &str| bad_input("the login at the registry", detail);
    if user.is_empty() || user.contains(':') || user.chars().chain(password.chars()).any(char::is_control) {
        return Err(refused(
            "a user has at least one character and no colon, and neither user nor password has control characters",
        ));
    }
    let request = http.get(base.clone()).basic_auth(user, Some(password)).build();
    let header = request.ok().and_then(|request| request.headers().get(AUTHORIZATION).cloned());
    let mut header = header.ok_or_else(|| refused("it does not fit into a header"))?;
    header.set_sensitive(true);
    Ok(header)
}

#[cfg(test)]
mod login_tests {
    use super::*;

    #[test]
    fn logins_become_headers_that_are_not_shown() {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let (http, base) = (Client::new(), Url::parse("https://registry.test/").unwrap());
        // The example of RFC 7617, section 2.
        let login =
            |user: &str, password: &str| RegistryLogin { user: user.into(), password: password.into() };
        let header = basic(&http, &base, &login("Aladdin", "open sesame")).unwrap();
        assert!(header == "Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ==" && header.is_sensitive());
        assert_eq!(format!("{:?}", login("a", "secret")), "RegistryLogin");
        for (user, password) in [("", "x"), ("a:b", "x"), ("a", "x\r\nHost: y"), ("a\n", "x")] {
            assert!(basic(&http, &base, &login(user, password)).is_err(), "{user:?}");
        }
    }
}
