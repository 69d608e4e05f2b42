//! The way to an upstream: its name, a connection, and TLS.

use std::error::Error as StdError;
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use http::Uri;
use rustls::pki_types::ServerName;
use rustls::{CertificateError, Error as TlsError};
use tokio::net::{TcpStream, lookup_host};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tower_service::Service as _;

use super::report::Finding;
use crate::config::Upstream;
use crate::outbound::{self, Dial, chain, innermost};

/// Goes the whole way, one finding a step, up to the first that fails. `within` bounds each.
pub(super) async fn reach(
    upstream: &Upstream,
    within: Duration,
    mut report: impl FnMut(Finding),
) -> bool {
    let base = upstream.base_url();
    // With a proxy the first hop is all that this machine resolves and dials.
    let hop = upstream.proxy.as_ref().map_or(&base, |proxy| &proxy.0);
    let mut step = |check, result: Result<String, Failure>| match result {
        Ok(what) => {
            report(Finding::ok(check, what).of(&upstream.name));
            true
        }
        Err(Failure { problem, what }) => {
            report(Finding::problem(check, what).of(&upstream.name).remedied(problem));
            false
        }
    };
    if !step("dns", resolve(hop, within).await) {
        return false;
    }
    let (connected, stream) = parted(connect(upstream, &base, within).await);
    if !step("connect", connected) {
        return false;
    }
    match stream {
        Some(stream) if base.scheme_str() == Some("https") => {
            step("tls", handshake(upstream, &base, stream, within).await)
        }
        _ => true,
    }
}

/// A step that failed: its entry in `remedies.toml`, and the sentence.
struct Failure {
    problem: &'static str,
    what: String,
}

impl Failure {
    fn new(problem: &'static str, what: String) -> Self {
        Self { problem, what }
    }
}

fn parted<T>(result: Result<(String, T), Failure>) -> (Result<String, Failure>, Option<T>) {
    match result {
        Ok((what, value)) => (Ok(what), Some(value)),
        Err(failure) => (Err(failure), None),
    }
}

/// Host and port of an address, the host without brackets.
fn host_and_port(uri: &Uri) -> (&str, u16) {
    let default = if uri.scheme_str() == Some("https") { 443 } else { 80 };
    let host = uri.host().unwrap_or_default().trim_matches(['[', ']']);
    (host, uri.port_u16().unwrap_or(default))
}

async fn resolve(hop: &Uri, within: Duration) -> Result<String, Failure> {
    let (host, port) = host_and_port(hop);
    if host.parse::<IpAddr>().is_ok() {
        return Ok(format!("{host} is an address"));
    }
    let failed =
        |why: &str| Failure::new("no_name", format!("the name {host} cannot be resolved: {why}"));
    let found = timeout(within, lookup_host((host, port)));
    let found = found.await.map_err(|_| failed("no answer in time"))?;
    let mut found = found.map_err(|error| failed(&error.to_string()))?;
    let first = found.next().ok_or_else(|| failed("it has no address"))?;
    let others = match found.count() {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    Ok(format!("{host} is {}{others}", first.ip()))
}

async fn connect(
    upstream: &Upstream,
    base: &Uri,
    within: Duration,
) -> Result<(String, TcpStream), Failure> {
    let (host, port) = host_and_port(base);
    let mut dial = outbound::dial(upstream, within);
    let through = match dial {
        Dial::Direct(_) => "",
        Dial::Proxy(_) => " through the proxy",
    };
    let cannot = |problem, why: &str| {
        let what = format!("{host}:{port} cannot be reached{through}: {why}");
        Failure::new(problem, what)
    };
    // A proxy that accepts and says nothing is bounded here.
    match timeout(within, dial.call(base.clone())).await {
        Ok(Ok(stream)) => {
            Ok((format!("{host}:{port} accepts connections{through}"), stream.into_inner()))
        }
        Ok(Err(error)) => Err(cannot(problem_of(&*error, through), &innermost(&*error))),
        Err(_) => Err(cannot("timed_out", "no answer in time")),
    }
}

/// The entry of `remedies.toml` for an error of connecting.
fn problem_of(error: &(dyn StdError + 'static), through: &str) -> &'static str {
    let kinds = chain(error).filter_map(|error| error.downcast_ref::<io::Error>());
    match kinds.map(io::Error::kind).last() {
        Some(io::ErrorKind::ConnectionRefused) => "refused",
        Some(io::ErrorKind::TimedOut) => "timed_out",
        Some(io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable) => "unreachable",
        _ if through.is_empty() => "other_connection",
        _ => "proxy",
    }
}

async fn handshake(
    upstream: &Upstream,
    base: &Uri,
    stream: TcpStream,
    within: Duration,
) -> Result<String, Failure> {
    let (host, _) = host_and_port(base);
    let cannot =
        |problem, why: &str| Failure::new(problem, format!("no TLS connection to {host}: {why}"));
    let tls = outbound::tls(upstream).map_err(|error| cannot("other_tls", &error.to_string()))?;
    let name = ServerName::try_from(host.to_owned())
        .map_err(|error| cannot("other_host", &error.to_string()))?;
    let handshake = TlsConnector::from(Arc::new(tls)).connect(name, stream);
    match timeout(within, handshake).await {
        Ok(Ok(stream)) => {
            let version = stream.get_ref().1.protocol_version();
            let version = version.and_then(|version| version.as_str()).unwrap_or("TLS");
            Ok(format!("{host} has a valid certificate ({})", version.replace("TLSv1_", "TLS 1.")))
        }
        Ok(Err(error)) => {
            let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<TlsError>());
            Err(cannot(inner.map_or("other_tls", tls_problem), &error.to_string()))
        }
        Err(_) => Err(cannot("timed_out", "no answer in time")),
    }
}

/// The entry of `remedies.toml` for an error of TLS.
fn tls_problem(error: &TlsError) -> &'static str {
    use CertificateError as C;
    match error {
        TlsError::InvalidCertificate(C::UnknownIssuer) => "unknown_issuer",
        TlsError::InvalidCertificate(C::NotValidForName | C::NotValidForNameContext { .. }) => {
            "other_host"
        }
        TlsError::InvalidCertificate(
            C::Expired | C::ExpiredContext { .. } | C::NotValidYet | C::NotValidYetContext { .. },
        ) => "expired",
        TlsError::InvalidMessage(_) => "not_tls",
        _ => "other_tls",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_is_refused_for_the_reason_that_its_remedy_cures() {
        let of = |error| tls_problem(&TlsError::InvalidCertificate(error));
        assert_eq!(of(CertificateError::UnknownIssuer), "unknown_issuer");
        assert_eq!(of(CertificateError::NotValidForName), "other_host");
        assert_eq!(of(CertificateError::Expired), "expired");
        assert_eq!(of(CertificateError::NotValidYet), "expired");
        assert_eq!(of(CertificateError::Revoked), "other_tls");
    }

    #[test]
    fn an_address_has_the_port_of_its_scheme_unless_it_names_one() {
        let of = |uri: &'static str| {
            let uri = Uri::from_static(uri);
            let (host, port) = host_and_port(&uri);
            format!("{host} {port}")
        };
        assert_eq!(of("https://a.example"), "a.example 443");
        assert_eq!(of("http://a.example/x"), "a.example 80");
        assert_eq!(of("http://[::1]:8"), "::1 8");
    }
}
