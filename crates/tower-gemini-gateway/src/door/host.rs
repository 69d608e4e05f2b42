//! Which names a gateway on loopback answers to. Pure.
//!
//! A page in a browser can be served from a name that its owner then points to 127.0.0.1. The
//! browser takes this gateway for that page's own server, and lets the page read what it says. The
//! `Host` header still has the page's name.

use std::net::IpAddr;

use http::header::HOST;
use http::uri::Authority;
use http::{HeaderMap, Uri};

/// Whether a request on loopback names this machine, or one of `names`. Without a name it does: a
/// browser always sends one.
pub(crate) fn is_local(uri: &Uri, headers: &HeaderMap, names: &[String]) -> bool {
    let in_header = headers.get_all(HOST).iter().map(|value| value.to_str().unwrap_or_default());
    let in_uri = uri.authority().map(Authority::as_str);
    in_uri.into_iter().chain(in_header).all(|name| is_name_of_this(name, names))
}

fn is_name_of_this(name: &str, names: &[String]) -> bool {
    let Ok(authority) = name.trim().parse::<Authority>() else { return false };
    let host = authority.host().trim_matches(['[', ']']).trim_end_matches('.');
    let is_loopback = host.parse::<IpAddr>().is_ok_and(|ip| ip.to_canonical().is_loopback());
    let host = host.to_ascii_lowercase();
    is_loopback
        || host == "localhost"
        || host.ends_with(".localhost")
        || names.iter().any(|known| known.eq_ignore_ascii_case(&host))
}

#[cfg(test)]
mod tests {
    use super::*;

    // A page could point its own name at 127.0.0.1 and read the status page.
    #[test]
    fn a_gateway_on_loopback_answers_to_its_own_names_only() {
        let names = ["Gateway.internal".to_owned()];
        let is_local = |host: Option<&str>| {
            let mut headers = HeaderMap::new();
            headers.extend(host.map(|host| (HOST, host.parse().unwrap())));
            is_local(&Uri::from_static("/status"), &headers, &names)
        };
        for host in [
            None,
            Some("localhost"),
            Some("LOCALHOST:8787"),
            Some("127.0.0.1:8787"),
            Some("127.8.8.8"),
            Some("[::1]:8787"),
            Some("gw.localhost:80"),
            Some("gateway.internal:8787"),
        ] {
            assert!(is_local(host), "{host:?}");
        }
        for host in [
            "evil.example",
            "localhost.evil.example",
            "127.0.0.1.evil.example",
            "",
            "192.0.2.1",
            "a b",
        ] {
            assert!(!is_local(Some(host)), "{host}");
        }
        let uri = Uri::from_static("http://evil.example/status");
        assert!(!super::is_local(&uri, &HeaderMap::new(), &names));
    }
}
