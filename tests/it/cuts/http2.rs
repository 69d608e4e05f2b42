//! HTTP/2: every phase and many byte offsets again, and what a server says of a stream or of the
//! connection before it closes.
//!
//! The origin speaks HTTP/2 frame by frame (RFC 9113), so that it can say things that a
//! well-behaved server library does not let it say.

use bytes::Bytes;
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, oneshot};
use tower::ServiceExt;
use tower_gemini::Trail;
use tower_gemini::body::WireBody;
use tower_gemini::stage::WireClient;
use tower_gemini::verdict::Charge;
use tower_gemini::{ClassifyGeminiErrorLayer, CollectRequestLayer, SingleAttemptLayer, compose};
use tower_gemini_reqwest::{ReqwestService, client_builder};

use super::{IMAGE, LONG, Tally, Truth, body, charge, request};

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;

const END_STREAM: u8 = 1;
const ACK: u8 = 1;
const END_HEADERS: u8 = 4;

const NO_ERROR: u32 = 0;
const PROTOCOL_ERROR: u32 = 1;
const INTERNAL_ERROR: u32 = 2;
const REFUSED_STREAM: u32 = 7;
const CANCEL: u32 = 8;
const ENHANCE_YOUR_CALM: u32 = 11;
const HTTP_1_1_REQUIRED: u32 = 13;

/// The first stream that a client opens.
const STREAM: u32 = 1;
const NO_LIMIT: u32 = (1 << 31) - 1;

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut frame = length[1..].to_vec();
    frame.extend_from_slice(&[kind, flags]);
    frame.extend_from_slice(&stream.to_be_bytes());
    frame.extend_from_slice(payload);
    frame
}

fn setting(id: u16, value: u32) -> Vec<u8> {
    [&id.to_be_bytes()[..], &value.to_be_bytes()].concat()
}

fn go_away(last: u32, code: u32) -> Vec<u8> {
    frame(GOAWAY, 0, 0, &[last.to_be_bytes(), code.to_be_bytes()].concat())
}

fn reset_stream(code: u32) -> Vec<u8> {
    frame(RST_STREAM, 0, STREAM, &code.to_be_bytes())
}

/// `200` with an image: the head is one indexed field (RFC 7541, appendix A, entry 8).
fn answer(stream: u32) -> Vec<u8> {
    [
        frame(HEADERS, END_HEADERS, stream, &[0x88]),
        frame(DATA, END_STREAM, stream, IMAGE.as_bytes()),
    ]
    .concat()
}

/// The server's preface, with windows so large that nothing but buffers holds a request back.
fn preface(more: &[u8]) -> Vec<u8> {
    let window = setting(4, NO_LIMIT);
    let update = frame(WINDOW_UPDATE, 0, 0, &(NO_LIMIT - 65_535).to_be_bytes());
    [frame(SETTINGS, 0, 0, &[&window, more].concat()), update].concat()
}

/// What a frame of the client's was to the origin.
struct Seen {
    kind: u8,
    flags: u8,
    stream: u32,
    length: usize,
    payload: Vec<u8>,
}

async fn next_frame(from: &mut (impl AsyncRead + Unpin)) -> Option<Seen> {
    let mut head = [0; 9];
    from.read_exact(&mut head).await.ok()?;
    let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
    let mut payload = vec![0; length];
    from.read_exact(&mut payload).await.ok()?;
    let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]) & NO_LIMIT;
    Some(Seen { kind: head[3], flags: head[4], stream, length, payload })
}

/// What has to be answered so that the connection goes on.
fn courtesy(seen: &Seen) -> Option<Vec<u8>> {
    match seen.kind {
        SETTINGS if seen.flags & ACK == 0 => Some(frame(SETTINGS, ACK, 0, &[])),
        PING if seen.flags & ACK == 0 => Some(frame(PING, ACK, 0, &seen.payload)),
        _ => None,
    }
}

const CLIENT_PREFACE: usize = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".len();

/// When the origin stops listening.
#[derive(Debug, Clone, Copy)]
enum When {
    /// After so many bytes of the connection, the client's preface among them.
    Bytes(u64),
    /// After the head of the request.
    Head,
    /// After so many bytes of its body, or after all of it where it is shorter.
    Data(usize),
    /// After all of it.
    Whole,
}

/// What it does then.
#[derive(Debug, Clone, Copy)]
enum Then {
    /// Writes so many bytes of an answer (not all of them), and leaves.
    Leave { answered: usize },
    /// Resets the stream, and stays.
    Reset(u32),
    /// The same after half of an answer.
    AnswerThenReset(u32),
    /// Ends the connection after the stream `last`, and leaves at once or when the client has.
    GoAway { last: u32, code: u32, leave: bool },
}

impl Then {
    fn phase(self, when: When) -> &'static str {
        match (self, when) {
            (Self::Leave { .. }, When::Whole) => "before or within the answer",
            (Self::Leave { .. }, _) => "within the request",
            (Self::Reset(REFUSED_STREAM), _) => "RST_STREAM, refused",
            (Self::Reset(_), _) => "RST_STREAM, other",
            (Self::AnswerThenReset(_), _) => "RST_STREAM within the answer",
            (Self::GoAway { last: 0, .. }, _) => "GOAWAY, stream not taken up",
            (Self::GoAway { .. }, _) => "GOAWAY, stream taken up",
        }
    }

    /// Whether the origin says by this that it did nothing with the stream.
    fn disowns(self) -> bool {
        matches!(self, Self::Reset(REFUSED_STREAM) | Self::GoAway { last: 0, .. })
    }
}

/// Serves one connection. Gives whether it had the whole request.
async fn origin(listener: TcpListener, when: When, then: Then, rst: bool) -> bool {
    let (mut stream, _) = listener.accept().await.unwrap();
    stream.set_nodelay(true).unwrap();
    let _ = stream.write_all(&preface(&[])).await;
    let most = if let When::Bytes(bytes) = when { bytes } else { u64::MAX };
    let mut whole = false;
    {
        let (reader, mut writer) = stream.split();
        let mut reader = reader.take(most);
        let mut client_preface = [0; CLIENT_PREFACE];
        if reader.read_exact(&mut client_preface).await.is_ok() {
            let mut data = 0;
            while let Some(seen) = next_frame(&mut reader).await {
                if let Some(answer) = courtesy(&seen) {
                    let _ = writer.write_all(&answer).await;
                }
                if seen.stream != STREAM || !matches!(seen.kind, HEADERS | DATA) {
                    continue;
                }
                whole |= seen.flags & END_STREAM != 0;
                data += if seen.kind == DATA { seen.length } else { 0 };
                let stop = match when {
                    When::Bytes(_) => false,
                    When::Head => true,
                    When::Data(bytes) => data >= bytes,
                    When::Whole => false,
                };
                if whole || stop {
                    break;
                }
            }
        }
    }
    match then {
        Then::Leave { answered } => {
            if let (true, When::Whole) = (whole, when) {
                let answer = answer(STREAM);
                let _ = stream.write_all(&answer[..answered.min(answer.len() - 1)]).await;
            }
            if rst {
                let _ = stream.set_zero_linger();
            }
            return whole;
        }
        Then::Reset(code) => {
            let _ = stream.write_all(&reset_stream(code)).await;
        }
        Then::AnswerThenReset(code) => {
            let answer = answer(STREAM);
            let half = frame(DATA, 0, STREAM, &IMAGE.as_bytes()[..40]);
            let _ = stream.write_all(&[&answer[..10], &half, &reset_stream(code)].concat()).await;
        }
        Then::GoAway { last, code, leave } => {
            let _ = stream.write_all(&go_away(last, code)).await;
            if leave {
                let _ = stream.shutdown().await;
            }
        }
    }
    whole | drain(&mut stream).await
}

/// Reads on until the client leaves. Gives whether the rest of the request came after all.
///
/// A socket that is closed with something unread in it resets the connection, and the client may
/// never see what was said last.
async fn drain(stream: &mut TcpStream) -> bool {
    let mut whole = false;
    while let Some(seen) = next_frame(stream).await {
        whole |= seen.stream == STREAM
            && matches!(seen.kind, HEADERS | DATA)
            && seen.flags & END_STREAM != 0;
    }
    whole
}

async fn every_cut<S: WireClient>(name: &str, client: impl Fn() -> S) {
    let (small, large) = (body(500), body(LONG));
    let mut script: Vec<(&Bytes, When, Then)> = Vec::new();
    let leave = Then::Leave { answered: 0 };
    script.extend((0..900).step_by(31).map(|bytes| (&small, When::Bytes(bytes), leave)));
    script.extend(
        (0..220).step_by(7).map(|answered| (&small, When::Whole, Then::Leave { answered })),
    );
    let offsets = [0, 20, 100, 5_000, 70_000, 500_000, 2_000_000, 6_000_000];
    script.extend(offsets.map(|bytes| (&large, When::Bytes(bytes), leave)));
    script.extend([0, 9, 40].map(|answered| (&large, When::Whole, Then::Leave { answered })));
    let codes = [
        NO_ERROR,
        PROTOCOL_ERROR,
        INTERNAL_ERROR,
        REFUSED_STREAM,
        CANCEL,
        ENHANCE_YOUR_CALM,
        HTTP_1_1_REQUIRED,
    ];
    for code in codes {
        for (body, when) in [
            (&small, When::Head),
            (&small, When::Whole),
            (&large, When::Head),
            (&large, When::Data(100_000)),
            (&large, When::Data(3_000_000)),
            (&large, When::Whole),
        ] {
            script.push((body, when, Then::Reset(code)));
            // A server that has taken the stream up and stays would be waited for.
            for (last, leave) in [(0, false), (0, true), (STREAM, true), (NO_LIMIT, true)] {
                script.push((body, when, Then::GoAway { last, code, leave }));
            }
        }
        script.push((&small, When::Whole, Then::AnswerThenReset(code)));
    }
    let mut tally = Tally::default();
    for rst in [false, true] {
        for &(body, when, then) in &script {
            if rst && !matches!(then, Then::Leave { .. }) {
                continue;
            }
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let addr = listener.local_addr().unwrap();
            let origin = tokio::spawn(origin(listener, when, then, rst));
            let charge = charge(client(), addr, body.clone()).await;
            let truth = match origin.await.unwrap() {
                // The server's own word that it did nothing with what it had.
                _ if then.disowns() => Truth::Unsent,
                true => Truth::Whole,
                false if body.len() >= LONG => Truth::Unsent,
                false => Truth::Untold,
            };
            tally.note(then.phase(when), truth, charge, &(when, then, rst, body.len()));
        }
    }
    tally.settle(name);
}

fn hyper() -> Client<hyper_util::client::legacy::connect::HttpConnector, WireBody> {
    Client::builder(TokioExecutor::new()).http2_only(true).build_http()
}

fn reqwest() -> ReqwestService {
    ReqwestService::new(client_builder().http2_prior_knowledge().build().unwrap())
}

#[tokio::test]
async fn what_the_origin_had_whole_is_never_called_unsent_by_hypers_client() {
    every_cut("HTTP/2, hyper", hyper).await;
}

#[tokio::test]
async fn what_the_origin_had_whole_is_never_called_unsent_by_reqwest() {
    every_cut("HTTP/2, reqwest", reqwest).await;
}

/// Takes one stream at a time. Says of each request that it has whole which stream it was, and
/// answers the first when it is told to.
async fn one_at_a_time(
    listener: TcpListener,
    whole: mpsc::UnboundedSender<u32>,
    mut answer_first: oneshot::Receiver<()>,
) {
    let (mut stream, _) = listener.accept().await.unwrap();
    stream.write_all(&preface(&setting(3, 1))).await.unwrap();
    let mut client_preface = [0; CLIENT_PREFACE];
    stream.read_exact(&mut client_preface).await.unwrap();
    let (mut reader, mut writer) = stream.split();
    let (frames, mut seen) = mpsc::unbounded_channel();
    let read = async {
        // In a task of its own: reading a frame must not be given up half way.
        while let Some(frame) = next_frame(&mut reader).await {
            let _ = frames.send(frame);
        }
        drop(frames);
    };
    let serve = async {
        let mut held = true;
        loop {
            tokio::select! {
                _ = &mut answer_first, if held => {
                    held = false;
                    writer.write_all(&answer(STREAM)).await.unwrap();
                }
                frame = seen.recv() => {
                    let Some(frame) = frame else { break };
                    if let Some(answer) = courtesy(&frame) {
                        writer.write_all(&answer).await.unwrap();
                    }
                    if matches!(frame.kind, HEADERS | DATA) && frame.flags & END_STREAM != 0 {
                        let _ = whole.send(frame.stream);
                        if frame.stream != STREAM {
                            writer.write_all(&answer(frame.stream)).await.unwrap();
                        }
                    }
                }
            }
        }
    };
    tokio::join!(read, serve);
}

/// A request that waits for a stream is given up, and called free. hyper goes on with it all the
/// same: what was called free must not reach the server whole when the stream is there at last.
async fn given_up_while_waiting<S: WireClient>(client: S) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let (whole, mut had) = mpsc::unbounded_channel();
    let (answer_first, told) = oneshot::channel();
    let origin = tokio::spawn(one_at_a_time(listener, whole, told));
    let service = compose(
        (CollectRequestLayer::new(), SingleAttemptLayer::new(), ClassifyGeminiErrorLayer::new()),
        client,
    );
    let first = {
        let service = service.clone();
        tokio::spawn(async move {
            service.oneshot(request(addr, body(10), &Trail::new())).await.map(|_| ())
        })
    };
    assert_eq!(had.recv().await, Some(STREAM));
    // The client has the server's settings by now: the next request has to wait.
    let trail = Trail::new();
    let mut second = Box::pin(service.clone().oneshot(request(addr, body(20), &trail)));
    for _ in 0..50 {
        assert!(futures::poll!(second.as_mut()).is_pending());
        tokio::task::yield_now().await;
    }
    drop(second);
    assert_eq!(
        trail.attempts().last().unwrap().charge,
        Charge::None,
        "it waited for a stream all the time"
    );
    answer_first.send(()).unwrap();
    first.await.unwrap().unwrap();
    // The third proves that the way is free, and that whatever was in front of it is through.
    let third = service.clone().oneshot(request(addr, body(30), &Trail::new())).await.unwrap();
    drop(third);
    let mut streams = Vec::new();
    while let Ok(stream) = had.try_recv() {
        streams.push(stream);
    }
    assert_eq!(streams.len(), 1, "the origin had these streams whole: {streams:?}");
    drop(service);
    origin.abort();
}

#[tokio::test]
async fn a_request_given_up_before_its_stream_never_goes_out_through_hyper() {
    given_up_while_waiting(hyper()).await;
}

#[tokio::test]
async fn a_request_given_up_before_its_stream_never_goes_out_through_reqwest() {
    given_up_while_waiting(reqwest()).await;
}
