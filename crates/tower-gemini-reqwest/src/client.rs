use std::time::Duration;

/// How long connecting may take. Three lost SYNs (sent again after 1, 3 and 7 s, RFC 6298) fit in,
/// and a connection that does not come costs nothing to give up.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// A builder of clients that leave every decision to the stack.
///
/// | setting | value | why |
/// | --- | --- | --- |
/// | connect timeout | 10 s | without one a dead address takes minutes of the call's time; nothing has been sent yet, so giving up is free |
/// | HTTP version | 1.1 only | over HTTP/2 many calls share one connection, so one that breaks takes all of them along, each maybe paid for |
/// | redirects | none | the API has none; one that is followed sends the key and the request to another place behind the stack's back |
/// | own retries | never | reqwest sends some requests again by itself; here only the stack does, which knows what was paid for |
/// | total timeout | none | the stack's `AttemptTimeout` sets one, and tells the server of it |
///
/// ```
/// let client = tower_gemini_reqwest::client_builder().build()?;
/// # Ok::<_, reqwest::Error>(())
/// ```
pub fn client_builder() -> reqwest::ClientBuilder {
    reqwest::Client::builder()
        .connect_timeout(CONNECT_TIMEOUT)
        .http1_only()
        .redirect(reqwest::redirect::Policy::none())
        .retry(reqwest::retry::never())
}
