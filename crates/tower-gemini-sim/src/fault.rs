//! Lists what may happen to a request instead of a complete image response.

use std::borrow::Cow;
use std::time::Duration;

use serde::Serialize;

/// Declares the faults: the variants of [`Fault`], each with its name and, unless it is one value,
/// the values of it that [`Fault::all`] lists.
macro_rules! faults {
    ($(#[$meta:meta])* $enum:ident: $($(#[$doc:meta])* $fault:ident $(($kind:ty))? $({
        $($(#[$of_field:meta])* $field:ident: $type:ty,)*
    })? = $name:literal $(=> $values:expr)?;)*) => {
        $(#[$meta])*
        #[derive(Debug, Clone, PartialEq, Default, Serialize)]
        #[non_exhaustive]
        pub enum $enum {
            $($(#[$doc])* $fault $(($kind))? $({ $($(#[$of_field])* $field: $type,)* })?,)*
        }

        impl $enum {
            /// Every kind of fault, at least once; kinds with a choice appear once for each.
            pub fn all() -> Vec<Self> {
                let mut all = Vec::new();
                $(all.extend(faults!(@ $fault $($values)?));)*
                all
            }

            /// A short name for ledgers and traces.
            pub fn name(&self) -> &'static str {
                match self {
                    $(Self::$fault { .. } => $name,)*
                }
            }
        }
    };
    (@ $fault:ident) => { [Self::$fault] };
    (@ $fault:ident $values:expr) => { $values };
}

faults! {
    /// One thing that happens to one request.
    ///
    /// Every variant is a response (or a silence) of the real API: recorded, documented or reported
    /// by users. Variants hold no text, so that a script prints on one line. [`Fault::all`] lists
    /// one or more of each.
    ///
    /// ```
    /// use tower_gemini_sim::Fault;
    /// assert!(Fault::all().len() > 80);
    /// assert_eq!(Fault::HighDemand.name(), "high_demand");
    /// ```
    Fault:

    /// No fault: a complete image response.
    #[default]
    None = "none";
    /// A complete image response in one of the shapes that APIs and gateways send.
    Shaped(Shape) = "shaped" => [
        Self::Shaped(Shape::with_drafts(2)),
        Self::Shaped(Shape { drafts_marked: false, drafts_small: true, ..Shape::with_drafts(1) }),
        Self::Shaped(Shape { final_marked: true, ..Shape::DOCUMENTED }),
        Self::Shaped(Shape { thought_after_data: true, ..Shape::with_drafts(2) }),
        Self::Shaped(Shape { draft_after_final: true, ..Shape::with_drafts(1) }),
        Self::Shaped(Shape { text_last: true, empty_part: true, ..Shape::DOCUMENTED }),
        Self::Shaped(Shape {
            snake_case: true,
            data_first: true,
            no_usage: true,
            ..Shape::DOCUMENTED
        }),
        Self::Shaped(Shape { text: false, ..Shape::DOCUMENTED }),
    ];
    /// A complete image response after this long, unless a deadline passes first.
    Late {
        /// How long the model works.
        latency: Duration,
    } = "late" => [Self::Late { latency: Duration::from_secs(400) }];

    /// A complete image response of the successor of the model asked for, and billed as the
    /// successor's, without a word: a retired model's calls are sent on so. A model without a
    /// successor responds itself.
    Rerouted {
        /// Whether the response names the model that drew it, as Google's do; gateways drop it.
        named: bool,
    } = "rerouted" => [true, false].map(|named| Self::Rerouted { named });
    /// A complete image response that was served, and is billed, in the standard tier although
    /// priority was asked for. Only the response's tier says so.
    TierDowngraded = "tier_downgraded";

    // -- 429
    /// A per-minute limit: `RetryInfo`, `QuotaFailure` and the hint in the text. Waiting helps.
    RateLimitMinute {
        /// When the window opens. The text keeps the fraction, `RetryInfo` drops it.
        retry_after: Duration,
        /// Which limit.
        limit: Limit,
    } = "rate_limit_minute" => [
        (34_074, Limit::Requests),
        (34_074, Limit::Images),
        (34_074, Limit::InputTokens),
        (539, Limit::Requests),
    ].map(|(ms, limit)| Self::RateLimitMinute { retry_after: Duration::from_millis(ms), limit });
    /// The per-day limit, although with a `RetryInfo` of seconds. Waiting that long does not help.
    RateLimitDay {
        /// What the misleading `RetryInfo` says.
        retry_after: Duration,
    } = "rate_limit_day" => [Self::RateLimitDay { retry_after: Duration::from_millis(2_500) }];
    /// `limit: 0`: this project may not use this model, yet `RetryInfo` says some seconds.
    ZeroQuota {
        /// What the misleading `RetryInfo` says.
        retry_after: Duration,
    } = "zero_quota" => [Self::ZeroQuota { retry_after: Duration::from_millis(58_211) }];
    /// `ErrorInfo` with `quota_limit_value: "0"`, and no hint.
    ZeroQuotaErrorInfo = "zero_quota_error_info";
    /// "Resource has been exhausted (e.g. check quota)." and nothing else.
    ExhaustedBare = "exhausted_bare";
    /// "Resource exhausted. Please try again later.": Google's own capacity, not a quota.
    SharedCapacity = "shared_capacity";
    /// The account spends too quickly (ten rolling minutes).
    SpendRate = "spend_rate";
    /// The project's monthly cap is reached.
    SpendCap = "spend_cap";
    /// Prepaid credits are used up; 429 in recorded responses and 402 in the documentation.
    PrepayDepleted {
        /// 402 instead of 429.
        payment_required: bool,
    } = "prepay_depleted" => [false, true]
        .map(|payment_required| Self::PrepayDepleted { payment_required });
    /// `MODEL_CAPACITY_EXHAUSTED`, as 429 or as 503.
    CapacityExhausted {
        /// 503 instead of 429.
        unavailable: bool,
    } = "capacity_exhausted" => [false, true]
        .map(|unavailable| Self::CapacityExhausted { unavailable });

    // -- 5xx and relatives
    /// 503 "The model is overloaded. Please try again later."
    Overloaded = "overloaded";
    /// 503 "This model is currently experiencing high demand…"
    HighDemand = "high_demand";
    /// 503 "The service is currently unavailable."
    ServiceUnavailable = "service_unavailable";
    /// 503 "Deadline expired before operation could complete."
    DeadlineExpired503 = "deadline_expired_503";
    /// 504 with the same text.
    DeadlineExpired504 = "deadline_expired_504";
    /// 500 "An internal error has occurred…"
    Internal = "internal";
    /// 501.
    Unimplemented = "unimplemented";
    /// 502 as HTML of the front end, "try again in 30 seconds".
    BadGatewayHtml = "bad_gateway_html";
    /// 499 without any client having cancelled.
    Cancelled = "cancelled";
    /// 408, which only proxies send.
    RequestTimeout = "request_timeout";

    // -- other 4xx
    /// One of the 400s.
    BadRequest(BadRequest) = "bad_request" => BadRequest::ALL.map(Self::BadRequest);
    /// 401 of an expired token.
    Unauthenticated = "unauthenticated";
    /// One of the 403s.
    Forbidden(Forbidden) = "forbidden" => Forbidden::ALL.map(Self::Forbidden);
    /// One of the 404s.
    NotFound(NotFound) = "not_found" => NotFound::ALL.map(Self::NotFound);
    /// 413 as HTML of a proxy, sent before the body is read.
    PayloadTooLargeHtml = "payload_too_large_html";

    // -- 200 without a usable image
    /// 200 with a `finishReason` that says why there is no image. Tokens are charged.
    Refused(Refusal) = "refused" => Refusal::ALL.map(Self::Refused);
    /// 200 with `promptFeedback.blockReason` and no candidate.
    PromptBlocked(Block) = "prompt_blocked" => Block::ALL.map(Self::PromptBlocked);
    /// `finishReason: NO_IMAGE`.
    NoImage = "no_image";
    /// `finishReason: IMAGE_OTHER`, with or without "You will not be charged for this request."
    ImageOther {
        /// Whether the response says that it is free, and is.
        waived: bool,
    } = "image_other" => [true, false].map(|waived| Self::ImageOther { waived });
    /// `finishReason: MAX_TOKENS`: thinking used them all.
    MaxTokens = "max_tokens";
    /// `STOP` with a text, 1290 image tokens on the bill and no image.
    StopWithoutImage = "stop_without_image";
    /// A `finishReason` that no documentation names.
    UnknownFinishReason = "unknown_finish_reason";
    /// 200 whose body is Google's error JSON.
    ErrorInOk = "error_in_ok";

    // -- broken streams (unary responses get the nearest equivalent, see each)
    /// After good events a bare JSON error without `data:`. Unary: as
    /// [`ErrorInOk`](Self::ErrorInOk).
    StreamErrorTail {
        /// Whether the model had finished.
        charged: bool,
    } = "stream_error_tail" => [false, true].map(|charged| Self::StreamErrorTail { charged });
    /// After good events `data: {"error": …}`. Unary: as [`ErrorInOk`](Self::ErrorInOk).
    StreamErrorEvent {
        /// Whether the model had finished.
        charged: bool,
    } = "stream_error_event" => [false, true].map(|charged| Self::StreamErrorEvent { charged });
    /// The response ends cleanly, without the final image and without a `finishReason`.
    NoFinishReason {
        /// Whether the model had finished.
        charged: bool,
    } = "no_finish_reason" => [false, true].map(|charged| Self::NoFinishReason { charged });

    // -- transport
    /// The connection is refused: the request is never received.
    ConnectionRefused = "connection_refused";
    /// The request is read, then the connection is reset; no work was done.
    ResetAfterReceipt = "reset_after_receipt";
    /// The image is generated and charged, then the connection is reset before the head of the
    /// answer.
    ResetAfterGeneration = "reset_after_generation";
    /// The image is generated and charged, and the connection ends within the head.
    CutHead {
        /// Bytes of the head that leave the server. In process the head is never handed over.
        at: usize,
    } = "cut_head" => [Self::CutHead { at: 17 }];
    /// The image is generated and charged, and the connection breaks within the body.
    CutBody {
        /// Bytes of the body that arrive.
        at: usize,
    } = "cut_body" => [0, 300].map(|at| Self::CutBody { at });
    /// As [`CutBody`](Self::CutBody), but the body ends as though it were complete.
    TruncatedBody {
        /// Bytes of the body that arrive.
        at: usize,
    } = "truncated_body" => [0, 300].map(|at| Self::TruncatedBody { at });
    /// No response ever, whatever `X-Server-Timeout` says: a dead connection.
    NoAnswer {
        /// Whether the image is generated and charged nevertheless, if the server's deadline leaves
        /// the time.
        charged: bool,
    } = "no_answer" => [false, true].map(|charged| Self::NoAnswer { charged });
    /// The image is generated and charged, and the body stalls for ever.
    StallBody {
        /// Bytes of the body that arrive.
        at: usize,
    } = "stall_body" => [0, 300].map(|at| Self::StallBody { at });
    /// A complete image response that arrives in small chunks.
    Trickle {
        /// Bytes at a time.
        chunk: usize,
        /// The pause before each.
        every: Duration,
    } = "trickle" => [Self::Trickle { chunk: 97, every: Duration::from_millis(10) }];

    // -- proxies
    /// 500 of a proxy around a stringified 503.
    ProxyWrapped503 = "proxy_wrapped_503";
    /// 500 of a proxy that hides a 429.
    ProxyHidden429 = "proxy_hidden_429";
    /// A proxy's 404 around somebody's 429, in OpenRouter's form.
    ProxyPreviousErrors = "proxy_previous_errors";
    /// Google's 503 as a one-element array, with the legacy `errors` member.
    ErrorArray503 = "error_array_503";
    /// "Max retries exhausted. Last error: …", as text around JSON.
    ProxyText503 = "proxy_text_503";
}

faults! {
    /// One thing that happens to one batch, beside what happens to the requests about it.
    ///
    /// A create whose response is lost is a fault of its request: after
    /// [`Fault::ResetAfterGeneration`], [`Fault::CutHead`], [`Fault::CutBody`] and
    /// [`Fault::NoAnswer`] with `charged` the batch exists all the same. `BATCH.md` has the source
    /// of each.
    ///
    /// ```
    /// use tower_gemini_sim::{BatchFault, Fault};
    /// let third = BatchFault::LinesFailed { first: 2, count: 1, fault: Fault::HighDemand };
    /// assert_eq!(third.name(), "lines_failed");
    /// ```
    BatchFault:

    /// No fault: every line has its response, in the order of the input.
    #[default]
    None = "none";
    /// Still not done 48 hours after its creation: `BATCH_STATE_EXPIRED`, no results, no charge.
    Expired {
        /// It ran by then; pending otherwise.
        running: bool,
    } = "expired" => [false, true].map(|running| Self::Expired { running });
    /// Pending for ever: it does not even expire.
    Stuck = "stuck";
    /// The whole batch fails when it would have ended: `BATCH_STATE_FAILED`, no results, no charge.
    Failed(Fault) = "failed" => [Fault::Internal, Fault::ExhaustedBare].map(Self::Failed);
    /// Some lines meet a fault each: one with an error status is an `error` in place of the
    /// `response` and is free; a refusal is a response, charged as ever.
    LinesFailed {
        /// The first of them, from 0.
        first: usize,
        /// How many.
        count: usize,
        /// What they meet.
        fault: Fault,
    } = "lines_failed" => [
        Fault::Internal,
        Fault::HighDemand,
        Fault::BadRequest(BadRequest::Generic),
        Fault::Refused(Refusal::ImageSafety),
    ].map(|fault| Self::LinesFailed { first: 0, count: 1, fault });
    /// Some lines are nowhere in the results.
    LinesMissing {
        /// The first of them, from 0.
        first: usize,
        /// How many.
        count: usize,
        /// Whether they are charged nevertheless.
        charged: bool,
    } = "lines_missing" => [false, true]
        .map(|charged| Self::LinesMissing { first: 0, count: 1, charged });
    /// Some lines are in the results twice, and charged once.
    LinesTwice {
        /// The first of them, from 0.
        first: usize,
        /// How many.
        count: usize,
    } = "lines_twice" => [Self::LinesTwice { first: 0, count: 1 }];
    /// The results are in another order than the input.
    OutOfOrder = "out_of_order";
    /// The results of inline requests are too large to be inline: they come as a file.
    ResultsInFile = "results_in_file";
    /// The batch has succeeded, and its results are not there yet.
    ResultsLate {
        /// How long after its end they are.
        by: Duration,
    } = "results_late" => [Self::ResultsLate { by: Duration::from_secs(90) }];
    /// Cancelled while it runs, it ends as `BATCH_STATE_CANCELLED` with the lines that were done,
    /// in place of `BATCH_STATE_SUCCEEDED` with an error for each of the others.
    CancelledWithResults = "cancelled_with_results";
    /// Its webhook is sent so often, none included: webhooks are delivered at least once, and a
    /// listener may have been down.
    Webhooks {
        /// How often, to each listener.
        times: usize,
    } = "webhooks" => [0, 2].map(|times| Self::Webhooks { times });
}

/// Declares kinds of one fault, each with its word: that of the wire where the wire has one.
macro_rules! kinds {
    ($(#[$meta:meta])* $name:ident { $($(#[$of:meta])* $kind:ident = $word:literal,)* }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
        #[non_exhaustive]
        pub enum $name {
            $($(#[$of])* #[doc = concat!("`", $word, "`")] $kind,)*
        }

        impl $name {
            /// Every one of them.
            pub const ALL: [Self; [$($word),*].len()] = [$(Self::$kind),*];

            /// Returns its word.
            pub fn as_str(self) -> &'static str {
                match self {
                    $(Self::$kind => $word,)*
                }
            }
        }
    };
}

kinds! {
    /// Which limit a 429 names.
    Limit {
        /// Requests a minute.
        Requests = "requests",
        /// Images a minute. No recorded response has such an id; the id is from a third party's
        /// test.
        Images = "images",
        /// Input tokens a minute.
        InputTokens = "input_tokens",
        /// Requests a day.
        RequestsPerDay = "requests_per_day",
    }
}

kinds! {
    /// The 400s.
    BadRequest {
        /// "Request contains an invalid argument."
        Generic = "generic",
        /// `API_KEY_INVALID`; the body holds the key.
        ApiKeyInvalid = "api_key_invalid",
        /// "API key expired. Please renew the API key."
        ApiKeyExpired = "api_key_expired",
        /// A field nobody knows, with `BadRequest` details.
        UnknownField = "unknown_field",
        /// "Unable to process input image. Please retry or report…", although retrying is useless.
        InputImage = "input_image",
        /// Inline data over the limit, with the old number.
        PayloadTooLarge = "payload_too_large",
        /// `FAILED_PRECONDITION`: the caller's country.
        Location = "location",
        /// `FAILED_PRECONDITION`, the reason only in `DebugInfo`.
        LocationGrpcMessage = "location_grpc_message",
        /// A turn of the history lacks its signature.
        MissingThoughtSignature = "missing_thought_signature",
        /// A signature of another backend.
        InvalidThoughtSignature = "invalid_thought_signature",
        /// More tokens than the context holds.
        TooManyTokens = "too_many_tokens",
        /// Imagen's way of blocking a prompt.
        PromptPolicy = "prompt_policy",
        /// A picture by URL that may not be fetched.
        UrlRobots = "url_robots",
    }
}

kinds! {
    /// The 403s.
    Forbidden {
        /// The API is not enabled.
        ServiceDisabled = "service_disabled",
        /// Vertex: no permission.
        IamPermission = "iam_permission",
        /// "Your API key was reported as leaked."
        KeyLeaked = "key_leaked",
        /// "Consumer 'api_key:…' has been suspended."; the body holds the key.
        Suspended = "suspended",
        /// "The caller does not have permission", nothing more.
        Generic = "generic",
        /// "Your project has been denied access."
        ProjectDenied = "project_denied",
    }
}

kinds! {
    /// The 404s.
    NotFound {
        /// The model is not known.
        Model = "model",
        /// "no longer available to new users", naming the successor.
        Retired = "retired",
        /// Vertex's wording.
        PublisherModel = "publisher_model",
        /// "Requested entity was not found."
        Entity = "entity",
        /// The cached content is gone; the model is fine.
        CachedContent = "cached_content",
        /// HTML: wrong host or path.
        Html = "html",
    }
}

kinds! {
    /// A `finishReason` of a refusal after generation. `MODEL_ARMOR` is of Vertex only;
    /// `MISSING_THOUGHT_SIGNATURE` comes as a 200.
    Refusal {
        Safety = "SAFETY",
        ImageSafety = "IMAGE_SAFETY",
        ProhibitedContent = "PROHIBITED_CONTENT",
        ImageProhibitedContent = "IMAGE_PROHIBITED_CONTENT",
        Recitation = "RECITATION",
        ImageRecitation = "IMAGE_RECITATION",
        Blocklist = "BLOCKLIST",
        Spii = "SPII",
        Language = "LANGUAGE",
        Other = "OTHER",
        ModelArmor = "MODEL_ARMOR",
        MalformedFunctionCall = "MALFORMED_FUNCTION_CALL",
        MissingThoughtSignature = "MISSING_THOUGHT_SIGNATURE",
    }
}

kinds! {
    /// A `blockReason` of a prompt. `MODEL_ARMOR` and `JAILBREAK` are of Vertex only.
    Block {
        Safety = "SAFETY",
        Other = "OTHER",
        Blocklist = "BLOCKLIST",
        ProhibitedContent = "PROHIBITED_CONTENT",
        ImageSafety = "IMAGE_SAFETY",
        ModelArmor = "MODEL_ARMOR",
        Jailbreak = "JAILBREAK",
    }
}

/// How the parts of a good response are arranged.
///
/// The default is what the documentation describes: drafts first, marked `thought: true`, then a
/// text, then the final image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
pub struct Shape {
    /// Draft images before the final one. Models without thinking make none, whatever is asked.
    pub drafts: u8,
    /// Drafts carry `thought: true`.
    pub drafts_marked: bool,
    /// Drafts are at 1K whatever the final size.
    pub drafts_small: bool,
    /// The final image carries `thought: true` too.
    pub final_marked: bool,
    /// `thought` is printed after `inlineData` instead of before.
    pub thought_after_data: bool,
    /// One marked draft more *after* the final image. Never seen, yet a reader that takes the last
    /// image of any kind deserves to fail.
    pub draft_after_final: bool,
    /// A text part accompanies the image.
    pub text: bool,
    /// The text comes after the image.
    pub text_last: bool,
    /// An empty part `{}` stands between text and image.
    pub empty_part: bool,
    /// `inline_data` and `mime_type`, as gateways print.
    pub snake_case: bool,
    /// `data` before `mimeType`, as SDKs print.
    pub data_first: bool,
    /// `usageMetadata` is missing, as at some gateways.
    pub no_usage: bool,
}

impl Shape {
    /// What the documentation describes, with no draft.
    pub const DOCUMENTED: Self = Self {
        drafts: 0,
        drafts_marked: true,
        drafts_small: false,
        final_marked: false,
        thought_after_data: false,
        draft_after_final: false,
        text: true,
        text_last: false,
        empty_part: false,
        snake_case: false,
        data_first: false,
        no_usage: false,
    };

    /// The same with drafts.
    pub const fn with_drafts(drafts: u8) -> Self {
        Self { drafts, ..Self::DOCUMENTED }
    }
}

impl Default for Shape {
    fn default() -> Self {
        Self::DOCUMENTED
    }
}

impl Fault {
    /// Whether the connection, not a response, says that something is wrong: the caller sees an
    /// error instead of a response, a broken body or nothing at all.
    pub fn is_transport(&self) -> bool {
        matches!(
            self,
            Self::ConnectionRefused
                | Self::ResetAfterReceipt
                | Self::ResetAfterGeneration
                | Self::CutHead { .. }
                | Self::CutBody { .. }
                | Self::NoAnswer { .. }
                | Self::StallBody { .. }
        )
    }

    /// Whether an attempt that meets this fault never comes to an end by itself.
    pub fn is_endless(&self) -> bool {
        matches!(self, Self::NoAnswer { .. } | Self::StallBody { .. })
    }

    /// Where its error stands in `responses.toml`.
    pub(crate) fn key(&self) -> Cow<'static, str> {
        let kind = match self {
            Self::BadRequest(kind) => kind.as_str(),
            Self::Forbidden(kind) => kind.as_str(),
            Self::NotFound(kind) => kind.as_str(),
            Self::PrepayDepleted { payment_required: true } => "402",
            Self::CapacityExhausted { unavailable: true } => "503",
            _ => return self.name().into(),
        };
        format!("{}_{kind}", self.name()).into()
    }
}
