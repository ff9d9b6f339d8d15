//! Tokens that registries give out: the challenge, the request, the answer.

use reqwest::Url;
use reqwest::header::{HeaderMap, HeaderValue, WWW_AUTHENTICATE};
use serde::Deserialize;

use super::patience::Failed;

/// Longest token, in bytes; those of large registries have 2 to 8 KiB.
const TOKEN_MAX: usize = 32 << 10;

/// Longest answer that holds a token, in bytes.
pub(super) const ANSWER_MAX: u64 = 128 << 10;

/// What a registry wants to see.
#[derive(Debug)]
pub(super) enum Wanted {
    /// A token that this address gives out.
    Token(Url),
    /// User and password.
    Login,
}

/// What a challenge wants for reading `path`.
pub(super) fn wanted(headers: &HeaderMap, path: &str) -> Result<Wanted, Failed> {
    let challenges = || headers.get_all(WWW_AUTHENTICATE).iter().filter_map(|value| value.to_str().ok());
    let Some(parameters) = challenges().find_map(bearer) else {
        let is_basic = |challenge: &str| {
            challenge.trim().get(..5).is_some_and(|scheme| scheme.eq_ignore_ascii_case("basic"))
        };
        return if challenges().any(is_basic) {
            Ok(Wanted::Login)
        } else {
            Err(Failed::finally("the registry does not say in a known way what it wants to see"))
        };
    };
    let find = |name: &str| parameters.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str());
    let realm = find("realm").and_then(|realm| Url::parse(realm).ok());
    let mut url =
        realm.ok_or_else(|| Failed::finally("the registry says no address that gives out tokens"))?;
    if let Some(service) = find("service") {
        url.query_pairs_mut().append_pair("service", service);
    }
    // Our own words, not those of the challenge: no right but that to read is wanted.
    url.query_pairs_mut().append_pair("scope", &format!("repository:{path}:pull"));
    Ok(Wanted::Token(url))
}

/// The parameters of a `Bearer` challenge (RFC 9110, section 11.6.1; RFC 6750, section 3).
fn bearer(challenge: &str) -> Option<Vec<(String, String)>> {
    let (scheme, mut rest) = challenge.trim().split_once(' ')?;
    if !scheme.eq_ignore_ascii_case("bearer") {
        return None;
    }
    let mut parameters = Vec::new();
    loop {
        rest = rest.trim_start_matches([' ', '\t', ',']);
        let Some((key, value)) = rest.split_once('=') else { return Some(parameters) };
        let (value, after) = match value.trim_start().strip_prefix('"') {
            Some(quoted) => unquote(quoted)?,
            None => {
                let end = value.find([',', ' ']).unwrap_or(value.len());
                (value[..end].to_owned(), &value[end..])
            }
        };
        parameters.push((key.trim().to_ascii_lowercase(), value));
        rest = after;
    }
}

/// A quoted text up to its closing mark, and what is behind it.
fn unquote(text: &str) -> Option<(String, &str)> {
    let (mut value, mut escaped) = (String::new(), false);
    for (at, c) in text.char_indices() {
        match c {
            '\\' if !escaped => escaped = true,
            '"' if !escaped => return Some((value, &text[at + 1..])),
            other => {
                value.push(other);
                escaped = false;
            }
        }
    }
    None
}

#[derive(Deserialize)]
struct Answer {
    token: Option<String>,
    access_token: Option<String>,
}

/// The header that shows the token of an answer.
pub(super) fn read(answer: &[u8]) -> Result<HeaderValue, Failed> {
    let parsed: Result<Answer, _> = serde_json::from_slice(answer);
    let parsed = parsed.map_err(|error| Failed::finally(format!("its token cannot be read: {error}")))?;
    let token = parsed.token.or(parsed.access_token).filter(|token| (1..=TOKEN_MAX).contains(&token.len()));
    let header = token.and_then(|token| HeaderValue::try_from(format!("Bearer {token}")).ok());
    let mut header = header.ok_or_else(|| Failed::finally("its token is missing, too long, or no token"))?;
    header.set_sensitive(true);
    Ok(header)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(challenges: &[&'static str]) -> Option<String> {
        let headers = challenges.iter().map(|value| (WWW_AUTHENTICATE, HeaderValue::from_static(value)));
        match wanted(&headers.collect(), "a/b").ok()? {
            Wanted::Token(url) => Some(url.to_string()),
            Wanted::Login => Some("login".to_owned()),
        }
    }

    #[test]
    fn challenges_are_understood() {
        let usual =
            r#"Bearer realm="https://auth.test/token?x=1",service="reg \"istry\"",scope="repository:c:push""#;
        let wanted = "https://auth.test/token?x=1&service=reg+%22istry%22&scope=repository%3Aa%2Fb%3Apull";
        assert_eq!(ask(&["Basic realm=\"x\"", usual]).unwrap(), wanted);
        assert_eq!(
            ask(&["bearer service=s , realm=https://auth.test/t"]).unwrap(),
            "https://auth.test/t?service=s&scope=repository%3Aa%2Fb%3Apull"
        );
        assert_eq!(ask(&["Negotiate", "BASIC realm=\"x\""]).unwrap(), "login");
        for wrong in ["Bearer", "Bearer realm=\"open", "Bearer realm=\"no url\"", ""] {
            assert_eq!(ask(&[wrong]), None, "{wrong}");
        }
        assert_eq!(ask(&[]), None);
    }

    #[test]
    fn tokens_are_checked() {
        let header = read(br#"{"access_token":"abc","expires_in":60}"#).unwrap();
        assert!(header == "Bearer abc" && header.is_sensitive());
        let long = format!(r#"{{"token":"{}"}}"#, "a".repeat(TOKEN_MAX + 1));
        for wrong in ["", "{}", r#"{"token":""}"#, r#"{"token":"a\nb"}"#, r#"{"token":7}"#, &long] {
            assert!(read(wrong.as_bytes()).is_err(), "{:.40}", wrong);
        }
    }
}
