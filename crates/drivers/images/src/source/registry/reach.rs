//! Hosts that a registry may send us to.
//!
//! A registry answers with addresses: of who gives out tokens (realm), of where its pieces are (redirects). They are its
//! words, and we are inside of the user's network. So they may lead to public addresses, and to addresses of the kind that
//! the registry itself has; never from `https` to `http`. Names are held against this when they are resolved for the
//! connection itself, so that no second answer of a name server can differ from the checked one.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use reqwest::Url;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};

/// Kinds of addresses, by who can be there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Public,
    Private,
    Loopback,
    LinkLocal,
    /// Addresses of no single host on the Internet: this host, this network, groups, examples.
    Special,
}

impl Kind {
    const fn word(self) -> &'static str {
        match self {
            Self::Public => "public",
            Self::Private => "private",
            Self::Loopback => "loopback",
            Self::LinkLocal => "link-local",
            Self::Special => "reserved",
        }
    }

    fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(address) => Self::of_v4(address),
            IpAddr::V6(address) => Self::of_v6(address),
        }
    }

    fn of_v4(address: Ipv4Addr) -> Self {
        match address.octets() {
            [127, ..] => Self::Loopback,
            [169, 254, ..] => Self::LinkLocal,
            // RFC 1918; 100.64.0.0/10 is RFC 6598.
            [10, ..] | [172, 16..=31, ..] | [192, 168, ..] | [100, 64..=127, ..] => Self::Private,
            // RFC 6890: "this network", protocol assignments, benchmarks; multicast and what is above.
            [0, ..] | [192, 0, 0, _] | [198, 18..=19, ..] | [224..=255, ..] => Self::Special,
            _ => Self::Public,
        }
    }

    fn of_v6(address: Ipv6Addr) -> Self {
        let [a, b, c, d, e, f, g, h] = address.segments();
        let inner = |high: u16, low: u16| {
            let ([a, b], [c, d]) = (high.to_be_bytes(), low.to_be_bytes());
            Self::of_v4(Ipv4Addr::new(a, b, c, d))
        };
        match (a, b, c, d, e, f) {
            (0, 0, 0, 0, 0, 0) if (g, h) == (0, 1) => Self::Loopback,
            // IPv4 in IPv6: mapped (RFC 4291), NAT64 (RFC 6052), 6to4 (RFC 3056).
            (0, 0, 0, 0, 0, 0xffff) | (0x64, 0xff9b, 0, 0, 0, 0) => inner(g, h),
            (0x2002, ..) => inner(b, c),
            // NAT64 of a network of its own (RFC 8215).
            (0x64, 0xff9b, 1, ..) => Self::Private,
            // Protocol assignments, Teredo among them, which holds an IPv4 address too (RFC 2928, RFC 4380).
            (0x2001, 0..=0x1ff, ..) => Self::Special,
            (0xfe80..=0xfebf, ..) => Self::LinkLocal,
            (0xfc00..=0xfdff, ..) => Self::Private,
            // Global unicast is 2000::/3 alone.
            (0x2000..=0x3fff, ..) => Self::Public,
            _ => Self::Special,
        }
    }
}

/// Hosts that may be reached while an image of one registry is pulled.
#[derive(Debug, Clone)]
pub(super) struct Reach {
    registry: String,
    /// Kind of the registry's own addresses; public ones may always be reached.
    own: Kind,
    plain_http: bool,
    /// Hosts of proxies that the user has set: they see to the names themselves.
    proxies: Arc<[String]>,
}

impl Reach {
    /// For the registry at `base`.
    pub(super) async fn of(base: &Url) -> Self {
        let registry = base.host_str().unwrap_or_default().to_owned();
        let addresses: Vec<IpAddr> = match literal(base) {
            Some(address) => vec![address],
            // A name that only a proxy can resolve has no address here, and leads to public ones only.
            None => tokio::net::lookup_host((registry.as_str(), 0))
                .await
                .map(|found| found.map(|address| address.ip()).collect())
                .unwrap_or_default(),
        };
        let mut kinds = addresses.into_iter().map(Kind::of);
        let first = kinds.next().unwrap_or(Kind::Public);
        // A name with addresses of several kinds is as public as its most public one.
        let own = if kinds.all(|kind| kind == first) { first } else { Kind::Public };
        Self { registry, own, plain_http: base.scheme() == "http", proxies: proxies() }
    }

    /// True if `url` may be asked, as far as its text tells.
    ///
    /// # Errors
    /// Reason for a refusal.
    pub(super) fn check(&self, url: &Url) -> Result<(), String> {
        let shown = shown(url);
        match url.scheme() {
            "https" => {}
            "http" if self.plain_http => {}
            other => return Err(format!("it leads to {shown}: from https to {other} is refused")),
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err(format!("it leads to {shown} with credentials of its own, which is refused"));
        }
        if url.host_str() == Some(&self.registry) {
            return Ok(());
        }
        // Plain HTTP is for this host alone, also where the registry sends us on.
        let own = if url.scheme() == "http" { &[self.own][..] } else { &[self.own, Kind::Public] };
        match literal(url).map(Kind::of) {
            Some(kind) if !own.contains(&kind) => Err(format!("it leads to {shown}: {}", refusal(kind))),
            None if url.scheme() == "http" && url.host_str() != Some("localhost") => {
                Err(format!("it leads to {shown}: plain HTTP is only for this host"))
            }
            _ => Ok(()),
        }
    }
}

fn refusal(kind: Kind) -> String {
    format!("{} addresses are refused unless the registry itself has one", kind.word())
}

/// A URL as it is shown: without its query, which may hold a secret.
fn shown(url: &Url) -> String {
    let port = url.port().map(|port| format!(":{port}")).unwrap_or_default();
    format!("{}://{}{port}", url.scheme(), url.host_str().unwrap_or_default())
}

fn literal(url: &Url) -> Option<IpAddr> {
    url.host_str()?.trim_matches(['[', ']']).parse().ok()
}

fn proxies() -> Arc<[String]> {
    let named = ["http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"];
    let values = named.into_iter().filter_map(|name| std::env::var(name).ok());
    let parse = |value: String| Url::parse(&value).or_else(|_| Url::parse(&format!("http://{value}"))).ok();
    values.filter_map(parse).filter_map(|url| url.host_str().map(str::to_owned)).collect()
}

/// A name leads where it must not.
#[derive(Debug, thiserror::Error)]
#[error("`{name}` leads to {address}: {reason}")]
pub(super) struct OutOfReach {
    name: String,
    address: IpAddr,
    reason: String,
}

impl Resolve for Reach {
    fn resolve(&self, name: Name) -> Resolving {
        let reach = self.clone();
        Box::pin(async move {
            let name = name.as_str().to_owned();
            let found: Vec<SocketAddr> = tokio::net::lookup_host((name.as_str(), 0)).await?.collect();
            let free = name == reach.registry || reach.proxies.contains(&name);
            let within =
                |address: &SocketAddr| free || [reach.own, Kind::Public].contains(&Kind::of(address.ip()));
            if let Some(address) = found.iter().find(|address| !within(address)).map(SocketAddr::ip) {
                return Err(Box::new(OutOfReach { name, address, reason: refusal(Kind::of(address)) }) as _);
            }
            Ok(Box::new(found.into_iter()) as Addrs)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_of_addresses() {
        for (kind, addresses) in [
            (Kind::Public, ["8.8.8.8", "2606:4700::1", "::ffff:8.8.8.8", "64:ff9b::808:808"]),
            (Kind::Private, ["10.1.2.3", "64:ff9b:1:7f00::1", "fd00::1", "2002:c0a8:101::"]),
            (Kind::Loopback, ["127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1"]),
            (Kind::LinkLocal, ["169.254.169.254", "fe80::1", "::ffff:169.254.169.254", "64:ff9b::a9fe:a9fe"]),
            (Kind::Special, ["0.0.0.0", "::", "2001:0:7f00:1::1", "ff02::1"]),
        ] {
            for address in addresses {
                assert_eq!(Kind::of(address.parse().unwrap()), kind, "{address}");
            }
        }
    }

    fn reach(registry: &str, own: Kind, plain_http: bool) -> Reach {
        Reach { registry: registry.to_owned(), own, plain_http, proxies: Arc::new([]) }
    }

    #[test]
    fn a_registry_leads_only_where_it_may() {
        let check = |reach: &Reach, url: &str| reach.check(&Url::parse(url).unwrap());
        let public = reach("registry.test", Kind::Public, false);
        for url in ["https://registry.test/x", "https://cdn.test:8443/y?z=1", "https://1.1.1.1/"] {
            check(&public, url).unwrap();
        }
        for url in [
            "http://registry.test/x",
            "http://cdn.test/",
            "ftp://cdn.test/",
            "file:///etc/passwd",
            "https://169.254.169.254/latest/meta-data",
            "https://127.0.0.1/",
            "https://[::1]/",
            "https://[::ffff:10.0.0.1]/",
            "https://0x7f000001/",
            "https://2130706433/",
            "https://user:secret@cdn.test/",
        ] {
            let error = check(&public, url).unwrap_err();
            assert!(!error.contains("secret"), "{error}");
        }
        let private = reach("10.0.0.5", Kind::Private, false);
        check(&private, "https://10.0.0.6/").unwrap();
        check(&private, "https://127.0.0.1/").unwrap_err();
        check(&private, "https://169.254.169.254/").unwrap_err();
        let here = reach("127.0.0.1", Kind::Loopback, true);
        check(&here, "http://127.0.0.1:1/").unwrap();
        check(&here, "http://localhost:1/").unwrap();
        for url in ["http://169.254.169.254/", "http://10.0.0.1/", "http://8.8.8.8/", "http://far.test/"] {
            check(&here, url).unwrap_err();
        }
    }

    #[tokio::test]
    async fn names_are_held_against_the_addresses_they_have() {
        let name = |name: &str| name.parse::<Name>().unwrap();
        let far = reach("registry.test", Kind::Public, false);
        let error = far.resolve(name("localhost")).await.err().unwrap().to_string();
        assert!(error.contains("loopback addresses are refused"), "{error}");
        assert!(reach("localhost", Kind::Public, false).resolve(name("localhost")).await.is_ok());
        assert!(reach("registry.test", Kind::Loopback, false).resolve(name("localhost")).await.is_ok());
    }
}
