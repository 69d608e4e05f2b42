//! TLS on the listener: a certificate that is read again when its files change.

use std::fmt;
use std::future::Future;
use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::task::{Context, Poll, ready};
use std::time::{Duration, SystemTime};

use rustls::ServerConfig;
use rustls::crypto::ring::default_provider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::Instant;
use tokio_rustls::server::TlsStream;
use tokio_rustls::{Accept, TlsAcceptor};

use crate::config::{self, ConfigError};
use crate::files::warn_if_readable_by_others;

/// How often the files are looked at, when connections come.
const EVERY: Duration = Duration::from_secs(10);

/// Makes streams of connections: TLS where `[server.tls]` is set.
#[derive(Clone, Default)]
pub(crate) struct Acceptor(Option<TlsAcceptor>);

impl fmt::Debug for Acceptor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Acceptor").field(&self.0.is_some()).finish()
    }
}

impl Acceptor {
    pub(crate) fn new(tls: Option<&config::Tls>) -> Result<Self, ConfigError> {
        let Some(tls) = tls else { return Ok(Self(None)) };
        warn_if_readable_by_others(&tls.key, "the private key of [server.tls]");
        let wrong = |error: String| {
            ConfigError::at("server.tls", error, "write the PEM files of a certificate and its key")
        };
        let certificate = Certificate::open(tls.clone()).map_err(wrong)?;
        let builder = ServerConfig::builder_with_provider(Arc::new(default_provider()));
        let builder = builder
            .with_safe_default_protocol_versions()
            .map_err(|error| wrong(format!("TLS cannot be set up: {error}")))?;
        let mut server = builder.with_no_client_auth().with_cert_resolver(Arc::new(certificate));
        server.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Self(Some(TlsAcceptor::from(Arc::new(server)))))
    }

    pub(crate) fn is_tls(&self) -> bool {
        self.0.is_some()
    }

    /// The handshake happens when the stream is first read, under the timeouts of its reader.
    pub(crate) fn stream(&self, stream: TcpStream) -> Stream {
        match &self.0 {
            Some(acceptor) => Stream::Handshake(Box::new(acceptor.accept(stream))),
            None => Stream::Plain(stream),
        }
    }
}

/// The certificate in its files.
struct Certificate {
    files: config::Tls,
    current: RwLock<Arc<CertifiedKey>>,
    /// When the files were looked at, and what they were then.
    looked: Mutex<(Instant, Stamps)>,
}

type Stamps = [Option<(SystemTime, u64)>; 2];

impl fmt::Debug for Certificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Certificate").field("files", &self.files).finish_non_exhaustive()
    }
}

impl Certificate {
    fn open(files: config::Tls) -> Result<Self, String> {
        // Before they are read, so that every later change is seen.
        let looked = Mutex::new((Instant::now(), stamps(&files)));
        let current = RwLock::new(Arc::new(read(&files)?));
        Ok(Self { files, current, looked })
    }

    /// Reads the files again where they changed. Those that do not work change nothing: the
    /// certificate before them may still be valid.
    fn refresh(&self) {
        let Ok(mut looked) = self.looked.try_lock() else { return };
        if looked.0.elapsed() < EVERY {
            return;
        }
        let now = stamps(&self.files);
        let is_same = now == looked.1;
        *looked = (Instant::now(), now);
        if is_same {
            return;
        }
        match read(&self.files) {
            Ok(certificate) => {
                let mut current = self.current.write().unwrap_or_else(PoisonError::into_inner);
                *current = Arc::new(certificate);
                tracing::info!("the certificate of [server.tls] was read again");
            }
            Err(error) => {
                tracing::error!(%error, "the certificate of [server.tls] stays as it was");
            }
        }
    }
}

impl ResolvesServerCert for Certificate {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.refresh();
        Some(self.current.read().unwrap_or_else(PoisonError::into_inner).clone())
    }
}

fn stamps(files: &config::Tls) -> Stamps {
    let stamp = |path: &PathBuf| {
        let meta = std::fs::metadata(path).ok()?;
        Some((meta.modified().ok()?, meta.len()))
    };
    [stamp(&files.cert), stamp(&files.key)]
}

fn read(files: &config::Tls) -> Result<CertifiedKey, String> {
    let key = PrivateKeyDer::from_pem_file(&files.key)
        .map_err(|error| format!("{} has no private key: {error}", files.key.display()))?;
    let chain = certificates(&files.cert)?;
    CertifiedKey::from_der(chain, key, &default_provider()).map_err(|error| {
        let (cert, key) = (files.cert.display(), files.key.display());
        format!("{cert} and {key} do not belong together: {error}")
    })
}

/// All certificates of a PEM file.
pub(crate) fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let file = path.display();
    let found: Result<Vec<_>, _> = CertificateDer::pem_file_iter(path).and_then(Iterator::collect);
    match found {
        Ok(found) if found.is_empty() => Err(format!("{file} has no certificate")),
        found => found.map_err(|error| format!("{file} cannot be read: {error}")),
    }
}

/// A connection, perhaps with TLS.
pub(crate) enum Stream {
    Plain(TcpStream),
    Handshake(Box<Accept<TcpStream>>),
    Tls(Box<TlsStream<TcpStream>>),
}

impl fmt::Debug for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Plain(_) => "Plain",
            Self::Handshake(_) => "Handshake",
            Self::Tls(_) => "Tls",
        })
    }
}

impl Stream {
    /// Ends the handshake, if there is one.
    fn poll_opened(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if let Self::Handshake(accept) = self {
            let stream = ready!(Pin::new(&mut **accept).poll(cx))?;
            *self = Self::Tls(Box::new(stream));
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        ready!(self.poll_opened(cx))?;
        match &mut *self {
            Self::Plain(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Tls(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Handshake(_) => Poll::Pending,
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        ready!(self.poll_opened(cx))?;
        match &mut *self {
            Self::Plain(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::Tls(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::Handshake(_) => Poll::Pending,
        }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        ready!(self.poll_opened(cx))?;
        match &mut *self {
            Self::Plain(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
            Self::Tls(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
            Self::Handshake(_) => Poll::Pending,
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Plain(stream) => stream.is_write_vectored(),
            Self::Tls(stream) => stream.is_write_vectored(),
            Self::Handshake(_) => false,
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut *self {
            Self::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Self::Tls(stream) => Pin::new(stream).poll_flush(cx),
            // Nothing was written yet.
            Self::Handshake(_) => Poll::Ready(Ok(())),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut *self {
            Self::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
            // Dropping the stream closes it.
            Self::Handshake(_) => Poll::Ready(Ok(())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_changed_certificate_is_taken_and_one_that_does_not_work_changes_nothing() {
        let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/tls");
        let dir = std::env::temp_dir().join(format!("certificate-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let files = config::Tls { cert: dir.join("cert.pem"), key: dir.join("key.pem") };
        let copy = |name: &str, to: &Path| {
            std::fs::write(to, std::fs::read(fixtures.join(name)).unwrap()).unwrap();
        };
        copy("first.pem", &files.cert);
        copy("first.key", &files.key);
        let certificate = Certificate::open(files.clone()).unwrap();
        let shown = async || {
            tokio::time::advance(EVERY).await;
            certificate.refresh();
            certificate.current.read().unwrap().end_entity_cert().unwrap().to_vec()
        };
        let first = shown().await;
        std::fs::write(&files.cert, "half a certif").unwrap();
        assert_eq!(shown().await, first);
        copy("second.pem", &files.cert);
        assert_eq!(shown().await, first, "its key is still the other one's");
        // Of another length, and so seen on a file system with coarse dates too.
        let key = std::fs::read_to_string(fixtures.join("second.key")).unwrap();
        std::fs::write(&files.key, format!("{key}\n")).unwrap();
        assert_ne!(shown().await, first);
        std::fs::remove_dir_all(dir).unwrap();
    }
}
