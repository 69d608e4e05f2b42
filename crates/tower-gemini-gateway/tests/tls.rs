//! TLS on the listener, a private CA and an HTTP proxy in front of an upstream.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    missing_docs,
    reason = "a test that cannot go on says where"
)]

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt, Full};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tower_gemini_gateway::Running;
use tower_gemini_sim::{Sim, serve};

const PRO: &str = "/v1beta/models/gemini-3-pro-image:generateContent";
const APPLE: &str = r#"{"contents":[{"parts":[{"text":"a red apple"}]}]}"#;

fn file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/tls").join(name)
}

/// A client that trusts the tests' CA, and opens a connection for each request.
fn client() -> Client<HttpsConnector<HttpConnector>, Full<Bytes>> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(file("ca.pem")).unwrap()).unwrap();
    let tls = ClientConfig::builder_with_provider(rustls::crypto::ring::default_provider().into());
    let tls = tls.with_safe_default_protocol_versions().unwrap().with_root_certificates(roots);
    let https = HttpsConnectorBuilder::new().with_tls_config(tls.with_no_client_auth());
    let https = https.https_or_http().enable_http1().build();
    Client::builder(TokioExecutor::new()).pool_max_idle_per_host(0).build(https)
}

async fn ask(url: &str) -> Result<(u16, Bytes), String> {
    let request = Request::post(format!("{url}{PRO}"))
        .header("x-goog-api-key", "AIzaSyA-key-0123456789abcdefghijklmnopq")
        .body(Full::from(APPLE));
    let response =
        client().request(request.unwrap()).await.map_err(|error| format!("{error:?}"))?;
    let status = response.status().as_u16();
    Ok((status, response.into_body().collect().await.unwrap().to_bytes()))
}

async fn gateway(server: &str, upstream: &str) -> Running {
    let config = format!(
        "[server]\nlisten = \"127.0.0.1:0\"\n{server}\n[[upstream]]\nname = \"up\"\nkind = \"gemini\"\n{upstream}\n[retry]\nattempts = 1\n"
    );
    tower_gemini_gateway::start(&config).await.unwrap_or_else(|error| panic!("{error}\n{config}"))
}

/// A gateway with TLS in front of a simulated Gemini.
async fn secure(sim: &Sim, cert: &Path, key: &Path) -> (Running, tower_gemini_sim::ServeHandle) {
    let upstream = serve(sim.clone(), "127.0.0.1:0".parse().unwrap()).await.unwrap();
    let tls = format!("[server.tls]\ncert = {cert:?}\nkey = {key:?}");
    (gateway(&tls, &format!("base_url = \"{}\"", upstream.url())).await, upstream)
}

#[tokio::test]
async fn a_listener_with_a_certificate_speaks_tls_and_nothing_else() {
    let sim = Sim::quick([]);
    let (gateway, _upstream) = secure(&sim, &file("first.pem"), &file("first.key")).await;
    assert!(gateway.url().starts_with("https://127.0.0.1:"));
    let (status, body) = ask(&gateway.url()).await.unwrap();
    assert!(status == 200 && body.len() > 100);
    assert!(ask(&gateway.url().replace("https", "http")).await.is_err());
    assert_eq!(sim.requests(), 1);
    assert_eq!(gateway.shutdown().await, 0);
}

#[tokio::test]
async fn a_certificate_and_a_key_that_do_not_belong_together_are_refused_at_start() {
    for (cert, key, says) in [
        (file("first.pem"), file("second.key"), "do not belong together"),
        (file("first.key"), file("first.key"), "has no certificate"),
        (file("first.pem"), file("nothing"), "has no private key"),
    ] {
        let config = format!(
            "[server]\nlisten = \"127.0.0.1:0\"\n[server.tls]\ncert = {cert:?}\nkey = {key:?}\n"
        );
        let error = tower_gemini_gateway::start(&config).await.unwrap_err().to_string();
        assert!(error.contains(says), "{error}");
    }
}

#[tokio::test]
async fn an_upstream_of_a_private_ca_is_trusted_where_its_ca_is_named_and_nowhere_else() {
    let sim = Sim::quick([]);
    let (upstream, _behind) = secure(&sim, &file("first.pem"), &file("first.key")).await;
    let base = format!("base_url = \"{}\"", upstream.url());
    let strict = gateway("", &base).await;
    assert_ne!(ask(&strict.url()).await.unwrap().0, 200);
    assert_eq!(sim.requests(), 0);
    let trusting = gateway("", &format!("{base}\nca_file = {:?}", file("ca.pem"))).await;
    assert_eq!(ask(&trusting.url()).await.unwrap().0, 200);
    assert_eq!(sim.requests(), 1);
}

/// A proxy that says what it was asked for, and answers so.
async fn proxy(answer: &'static str) -> (String, Arc<Mutex<Vec<String>>>, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let (heads, tunnels) = (Arc::<Mutex<Vec<String>>>::default(), Arc::<AtomicUsize>::default());
    let (seen, opened) = (heads.clone(), tunnels.clone());
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            let (seen, opened) = (seen.clone(), opened.clone());
            tokio::spawn(async move {
                let mut head = String::new();
                while !head.ends_with("\r\n\r\n") {
                    head.push(client.read_u8().await.unwrap().into());
                }
                let target = head.split(' ').nth(1).unwrap().to_owned();
                seen.lock().unwrap().push(head);
                client.write_all(answer.as_bytes()).await.unwrap();
                if answer.contains(" 200 ") {
                    opened.fetch_add(1, Ordering::Relaxed);
                    let mut upstream = TcpStream::connect(target).await.unwrap();
                    let _ = copy_bidirectional(&mut client, &mut upstream).await;
                }
            });
        }
    });
    (address, heads, tunnels)
}

#[tokio::test]
async fn an_upstream_behind_a_proxy_is_reached_through_a_tunnel_that_hides_key_and_image() {
    let sim = Sim::quick([]);
    let (upstream, _behind) = secure(&sim, &file("first.pem"), &file("first.key")).await;
    let (address, heads, tunnels) = proxy("HTTP/1.1 200 Connection established\r\n\r\n").await;
    let settings = format!(
        "base_url = \"{}\"\nca_file = {:?}\nproxy = \"http://ann:secret@{address}\"",
        upstream.url(),
        file("ca.pem")
    );
    let gateway = gateway("", &settings).await;
    assert_eq!(ask(&gateway.url()).await.unwrap().0, 200);
    assert_eq!((sim.requests(), tunnels.load(Ordering::Relaxed)), (1, 1));
    let head = heads.lock().unwrap()[0].to_ascii_lowercase();
    let host = upstream.url().trim_start_matches("https://").to_owned();
    assert!(head.starts_with(&format!("connect {host} ")), "{head}");
    // `ann:secret`
    assert!(head.contains("proxy-authorization: basic yw5uonnly3jlda=="), "{head}");
    assert!(!head.contains("aiza"), "{head}");
}

#[tokio::test]
async fn a_proxy_that_refuses_costs_nothing_and_is_named_as_no_connection() {
    let (address, ..) = proxy("HTTP/1.1 407 Proxy Authentication Required\r\n\r\n").await;
    let settings = format!("base_url = \"https://localhost:1\"\nproxy = \"http://{address}\"");
    let gateway = gateway("[responses]\nreport_headers = true", &settings).await;
    let request = Request::post(format!("{}{PRO}", gateway.url())).body(Full::from(APPLE)).unwrap();
    let response = client().request(request).await.unwrap();
    assert_eq!(response.headers()["x-gemini-charge"], "none");
    assert!(response.status().is_server_error(), "{}", response.status());
}
