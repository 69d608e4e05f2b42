//! Where the URLs of jobs may lead: not into this machine's own network. Pure.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use http::Uri;

/// Whether an address is one of the public internet: nothing of this machine, its network or its
/// cloud's metadata service (IANA special-purpose address registries, 2026-11).
pub(super) fn is_public(address: IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(address) => is_public_v4(address),
        IpAddr::V6(address) => is_public_v6(address),
    }
}

fn is_public_v4(address: Ipv4Addr) -> bool {
    let [a, b, c, _] = address.octets();
    let is_special = address.is_private()
        || address.is_loopback()
        || address.is_link_local()
        || address.is_documentation()
        || address.is_multicast()
        || a == 0
        || a >= 240
        // Shared by the customers of a provider.
        || (a == 100 && b & 0xc0 == 64)
        // Protocol assignments, and benchmarks.
        || (a, b, c) == (192, 0, 0)
        || (a == 198 && b & 0xfe == 18);
    !is_special
}

fn is_public_v6(address: Ipv6Addr) -> bool {
    let segments = address.segments();
    let [a, b, c, d, e, f, g, h] = segments;
    let embedded = |high: u16, low: u16| {
        let [[a, b], [c, d]] = [high.to_be_bytes(), low.to_be_bytes()];
        is_public_v4(Ipv4Addr::new(a, b, c, d))
    };
    // Translated to an IPv4 address by a gateway of the network.
    if [a, b, c, d, e, f] == [0x64, 0xff9b, 0, 0, 0, 0] {
        return embedded(g, h);
    }
    if a == 0x2002 {
        return embedded(b, c);
    }
    // Everything else that is public is in 2000::/3, without Teredo and documentation.
    a & 0xe000 == 0x2000 && !(a == 0x2001 && (b == 0 || b == 0xdb8)) && a != 0x3fff
}

/// The URL of an input or a webhook, if it may be asked.
///
/// A host that is a name is checked when it is resolved: see [`Reach`](super::fetch::Reach).
pub(super) fn url(text: &str, allows_private: bool) -> Result<Uri, &'static str> {
    const NO_URL: &str = "is no URL; write https://host/path, without a user name";
    let uri: Uri = text.parse().map_err(|_| NO_URL)?;
    let is_http = matches!(uri.scheme_str(), Some("http" | "https"));
    let has_user = uri.authority().is_some_and(|authority| authority.as_str().contains('@'));
    let host = uri.host().filter(|host| !host.is_empty() && is_http && !has_user).ok_or(NO_URL)?;
    let address = host.trim_matches(['[', ']']).parse::<IpAddr>();
    match address {
        Ok(address) if !allows_private && !is_public(address) => Err(PRIVATE),
        _ => Ok(uri),
    }
}

/// Why an address is not asked.
pub(super) const PRIVATE: &str =
    "leads to a loopback, link-local or private address, which jobs.private_urls = true allows";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_address_of_this_machine_or_its_network_is_public() {
        for private in [
            "127.0.0.1",
            "127.8.9.1",
            "0.0.0.0",
            "0.1.2.3",
            "10.0.0.1",
            "172.16.0.1",
            "172.31.255.255",
            "192.168.1.1",
            "169.254.169.254",
            "100.64.0.1",
            "100.127.0.1",
            "192.0.0.8",
            "198.18.0.1",
            "198.19.255.255",
            "224.0.0.1",
            "240.0.0.1",
            "255.255.255.255",
            "192.0.2.1",
            "::1",
            "::",
            "::ffff:127.0.0.1",
            "::ffff:10.0.0.1",
            "::127.0.0.1",
            "fe80::1",
            "fec0::1",
            "fc00::1",
            "fd12:3456::1",
            "ff02::1",
            "64:ff9b::a00:1",
            "64:ff9b:1::1",
            "2002:7f00:1::",
            "2002:a00:1::",
            "2001:db8::1",
            "2001:0:7f00:1::",
            "100::1",
            "3fff::1",
        ] {
            assert!(!is_public(private.parse().unwrap()), "{private}");
        }
        for public in [
            "8.8.8.8",
            "172.32.0.1",
            "100.128.0.1",
            "198.20.0.1",
            "223.255.255.255",
            "2606:4700::1111",
            "64:ff9b::808:808",
            "2002:808:808::",
            "::ffff:8.8.8.8",
        ] {
            assert!(is_public(public.parse().unwrap()), "{public}");
        }
    }

    #[test]
    fn a_url_is_refused_for_what_it_is_and_not_for_where_its_name_leads() {
        for bad in [
            "ftp://a.example/",
            "file:///etc/passwd",
            "/etc/passwd",
            "https://",
            "a.example/x",
            "https://user@a.example/",
            "http://127.0.0.1/",
            "http://[::1]:80/",
            "http://10.1.2.3/x",
        ] {
            assert!(url(bad, false).is_err(), "{bad}");
        }
        for good in ["https://a.example/x?y", "http://8.8.8.8/", "http://localhost:9/"] {
            assert!(url(good, false).is_ok(), "{good}");
        }
        assert!(url("http://127.0.0.1/", true).is_ok());
        assert!(url("ftp://127.0.0.1/", true).is_err());
    }
}
