//! Lists what may happen to a request instead of a complete image response.

use std::time::Duration;

use serde::Serialize;

/// One thing that happens to one request.
///
/// Every variant is a response (or a silence) of the real API: recorded, documented or reported by
/// users. Variants hold no text, so that a script prints on one line. [`Fault::all`] lists one or
/// more of each.
///
/// ```
/// use tower_gemini_sim::Fault;
/// assert!(Fault::all().len() > 80);
/// assert_eq!(Fault::nth(0), Fault::None);
/// assert_eq!(Fault::HighDemand.name(), "high_demand");
/// ```
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
#[non_exhaustive]
pub enum Fault {
    /// No fault: a complete image response.
    #[default]
    None,
    /// A complete image response in one of the shapes that APIs and gateways send.
    Shaped(Shape),
    /// A complete image response after this long, unless a deadline passes first.
    Late {
        /// How long the model works.
        latency: Duration,
    },

    // -- 429
    /// A per-minute limit: `RetryInfo`, `QuotaFailure` and the hint in the text. Waiting helps.
    RateLimitMinute {
        /// When the window opens. The text keeps the fraction, `RetryInfo` drops it.
        retry_after: Duration,
        /// Which limit.
        limit: Limit,
    },
    /// The per-day limit, although with a `RetryInfo` of seconds. Waiting that long does not help.
    RateLimitDay {
        /// What the misleading `RetryInfo` says.
        retry_after: Duration,
    },
    /// `limit: 0`: this project may not use this model, yet `RetryInfo` says some seconds.
    ZeroQuota {
        /// What the misleading `RetryInfo` says.
        retry_after: Duration,
    },
    /// `ErrorInfo` with `quota_limit_value: "0"`, and no hint.
    ZeroQuotaErrorInfo,
    /// "Resource has been exhausted (e.g. check quota)." and nothing else.
    ExhaustedBare,
    /// "Resource exhausted. Please try again later.": Google's own capacity, not a quota.
    SharedCapacity,
    /// The account spends too quickly (ten rolling minutes).
    SpendRate,
    /// The project's monthly cap is reached.
    SpendCap,
    /// Prepaid credits are used up; 429 in recorded responses and 402 in the documentation.
    PrepayDepleted {
        /// 402 instead of 429.
        payment_required: bool,
    },
    /// `MODEL_CAPACITY_EXHAUSTED`, as 429 or as 503.
    CapacityExhausted {
        /// 503 instead of 429.
        unavailable: bool,
    },

    // -- 5xx and relatives
    /// 503 "The model is overloaded. Please try again later."
    Overloaded,
    /// 503 "This model is currently experiencing high demand…"
    HighDemand,
    /// 503 "The service is currently unavailable."
    ServiceUnavailable,
    /// 503 "Deadline expired before operation could complete."
    DeadlineExpired503,
    /// 504 with the same text.
    DeadlineExpired504,
    /// 500 "An internal error has occurred…"
    Internal,
    /// 501.
    Unimplemented,
    /// 502 as HTML of the front end, "try again in 30 seconds".
    BadGatewayHtml,
    /// 499 without any client having cancelled.
    Cancelled,
    /// 408, which only proxies send.
    RequestTimeout,

    // -- other 4xx
    /// One of the 400s.
    BadRequest(BadRequest),
    /// 401 of an expired token.
    Unauthenticated,
    /// One of the 403s.
    Forbidden(Forbidden),
    /// One of the 404s.
    NotFound(NotFound),
    /// 413 as HTML of a proxy, sent before the body is read.
    PayloadTooLargeHtml,

    // -- 200 without a usable image
    /// 200 with a `finishReason` that says why there is no image. Tokens are charged.
    Refused(Refusal),
    /// 200 with `promptFeedback.blockReason` and no candidate.
    PromptBlocked(Block),
    /// `finishReason: NO_IMAGE`.
    NoImage,
    /// `finishReason: IMAGE_OTHER`, with or without "You will not be charged for this request."
    ImageOther {
        /// Whether the answer says that it is free, and is.
        waived: bool,
    },
    /// `finishReason: MAX_TOKENS`: thinking used them all.
    MaxTokens,
    /// `STOP` with a text, 1290 image tokens on the bill and no image.
    StopWithoutImage,
    /// A `finishReason` that no documentation names.
    UnknownFinishReason,
    /// 200 whose body is Google's error JSON.
    ErrorInOk,

    // -- broken streams (unary responses get the nearest equivalent, see each)
    /// After good events a bare JSON error without `data:`. Unary: as
    /// [`ErrorInOk`](Self::ErrorInOk).
    StreamErrorTail {
        /// Whether the model had finished.
        charged: bool,
    },
    /// After good events `data: {"error": …}`. Unary: as [`ErrorInOk`](Self::ErrorInOk).
    StreamErrorEvent {
        /// Whether the model had finished.
        charged: bool,
    },
    /// The response ends cleanly, without the final image and without a `finishReason`.
    NoFinishReason {
        /// Whether the model had finished.
        charged: bool,
    },

    // -- transport
    /// The connection is refused: the request is never received.
    ConnectionRefused,
    /// The request is read, then the connection is reset; no work was done.
    ResetAfterReceipt,
    /// The image is generated and charged, then the connection is reset before the head of the answer.
    ResetAfterGeneration,
    /// The image is generated and charged, and the connection ends within the head.
    CutHead {
        /// Bytes of the head that leave the server. In process the head is never handed over.
        at: usize,
    },
    /// The image is generated and charged, and the connection breaks within the body.
    CutBody {
        /// Bytes of the body that arrive.
        at: usize,
    },
    /// As [`CutBody`](Self::CutBody), but the body ends as though it were complete.
    TruncatedBody {
        /// Bytes of the body that arrive.
        at: usize,
    },
    /// No response ever, whatever `X-Server-Timeout` says: a dead connection.
    NoAnswer {
        /// Whether the image is generated and charged nevertheless, if the server's deadline leaves
        /// the time.
        charged: bool,
    },
    /// The image is generated and charged, and the body stalls for ever.
    StallBody {
        /// Bytes of the body that arrive.
        at: usize,
    },
    /// A complete image response that arrives in small chunks.
    Trickle {
        /// Bytes at a time.
        chunk: usize,
        /// The pause before each.
        every: Duration,
    },

    // -- proxies
    /// 500 of a proxy around a stringified 503.
    ProxyWrapped503,
    /// 500 of a proxy that hides a 429.
    ProxyHidden429,
    /// A proxy's 404 around somebody's 429, in OpenRouter's form.
    ProxyPreviousErrors,
    /// Google's 503 as a one-element array, with the legacy `errors` member.
    ErrorArray503,
    /// "Max retries exhausted. Last error: …", as text around JSON.
    ProxyText503,
}

/// Which limit a 429 by the minute names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[non_exhaustive]
pub enum Limit {
    /// Requests a minute.
    Requests,
    /// Images a minute. No recorded response has such an id; the id is from a third
    /// party's test.
    Images,
    /// Input tokens a minute.
    InputTokens,
    /// Requests a day.
    RequestsPerDay,
}

/// Declares kinds of one fault, with the list of them all and, where the wire has a word for each,
/// that word.
macro_rules! kinds {
    ($(#[$meta:meta])* $name:ident { $($(#[$of:meta])* $kind:ident,)* }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
        #[non_exhaustive]
        pub enum $name {
            $($(#[$of])* $kind,)*
        }

        impl $name {
            const ALL: &[Self] = &[$(Self::$kind),*];
        }
    };
    ($(#[$meta:meta])* $name:ident { $($kind:ident = $word:literal,)* }) => {
        kinds! { $(#[$meta])* $name { $(#[doc = concat!("`", $word, "`.")] $kind,)* } }

        impl $name {
            /// Returns the word of the wire.
            pub fn as_str(self) -> &'static str {
                match self {
                    $(Self::$kind => $word,)*
                }
            }
        }
    };
}

kinds! {
    /// The 400s.
    BadRequest {
        /// "Request contains an invalid argument."
        Generic,
        /// `API_KEY_INVALID`; the body holds the key.
        ApiKeyInvalid,
        /// "API key expired. Please renew the API key."
        ApiKeyExpired,
        /// A field nobody knows, with `BadRequest` details.
        UnknownField,
        /// "Unable to process input image. Please retry or report…", although retrying is useless.
        InputImage,
        /// Inline data over the limit, with the old number.
        PayloadTooLarge,
        /// `FAILED_PRECONDITION`: the caller's country.
        Location,
        /// `FAILED_PRECONDITION`, the reason only in `DebugInfo`.
        LocationGrpcMessage,
        /// A turn of the history lacks its signature.
        MissingThoughtSignature,
        /// A signature of another backend.
        InvalidThoughtSignature,
        /// More tokens than the context holds.
        TooManyTokens,
        /// Imagen's way of blocking a prompt.
        PromptPolicy,
        /// A picture by URL that may not be fetched.
        UrlRobots,
    }
}

kinds! {
    /// The 403s.
    Forbidden {
        /// The API is not enabled.
        ServiceDisabled,
        /// Vertex: no permission.
        IamPermission,
        /// "Your API key was reported as leaked."
        KeyLeaked,
        /// "Consumer 'api_key:…' has been suspended."; the body holds the key.
        Suspended,
        /// "The caller does not have permission", nothing more.
        Generic,
        /// "Your project has been denied access."
        ProjectDenied,
    }
}

kinds! {
    /// The 404s.
    NotFound {
        /// The model is not known.
        Model,
        /// "no longer available to new users", naming the successor.
        Retired,
        /// Vertex's wording.
        PublisherModel,
        /// "Requested entity was not found."
        Entity,
        /// The cached content is gone; the model is fine.
        CachedContent,
        /// HTML: wrong host or path.
        Html,
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

/// How the parts of a good answer are arranged.
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
    /// Every kind of fault, at least once; kinds with a choice appear once for each.
    pub fn all() -> Vec<Self> {
        let some_seconds = Duration::from_millis(34_074);
        let mut all = vec![
            Self::None,
            Self::Shaped(Shape::with_drafts(2)),
            Self::Shaped(Shape {
                drafts_marked: false,
                drafts_small: true,
                ..Shape::with_drafts(1)
            }),
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
            Self::Late { latency: Duration::from_secs(400) },
        ];
        for limit in [Limit::Requests, Limit::Images, Limit::InputTokens] {
            all.push(Self::RateLimitMinute { retry_after: some_seconds, limit });
        }
        all.extend([
            Self::RateLimitMinute {
                retry_after: Duration::from_millis(539),
                limit: Limit::Requests,
            },
            Self::RateLimitDay { retry_after: Duration::from_millis(2_500) },
            Self::ZeroQuota { retry_after: Duration::from_millis(58_211) },
            Self::ZeroQuotaErrorInfo,
            Self::ExhaustedBare,
            Self::SharedCapacity,
            Self::SpendRate,
            Self::SpendCap,
            Self::PrepayDepleted { payment_required: false },
            Self::PrepayDepleted { payment_required: true },
            Self::CapacityExhausted { unavailable: false },
            Self::CapacityExhausted { unavailable: true },
            Self::Overloaded,
            Self::HighDemand,
            Self::ServiceUnavailable,
            Self::DeadlineExpired503,
            Self::DeadlineExpired504,
            Self::Internal,
            Self::Unimplemented,
            Self::BadGatewayHtml,
            Self::Cancelled,
            Self::RequestTimeout,
            Self::Unauthenticated,
            Self::PayloadTooLargeHtml,
        ]);
        all.extend(BadRequest::ALL.iter().copied().map(Self::BadRequest));
        all.extend(Forbidden::ALL.iter().copied().map(Self::Forbidden));
        all.extend(NotFound::ALL.iter().copied().map(Self::NotFound));
        all.extend(Refusal::ALL.iter().copied().map(Self::Refused));
        all.extend(Block::ALL.iter().copied().map(Self::PromptBlocked));
        all.extend([
            Self::NoImage,
            Self::ImageOther { waived: true },
            Self::ImageOther { waived: false },
            Self::MaxTokens,
            Self::StopWithoutImage,
            Self::UnknownFinishReason,
            Self::ErrorInOk,
        ]);
        for charged in [false, true] {
            all.extend([
                Self::StreamErrorTail { charged },
                Self::StreamErrorEvent { charged },
                Self::NoFinishReason { charged },
                Self::NoAnswer { charged },
            ]);
        }
        all.extend([
            Self::ConnectionRefused,
            Self::ResetAfterReceipt,
            Self::ResetAfterGeneration,
            Self::CutHead { at: 17 },
            Self::CutBody { at: 0 },
            Self::CutBody { at: 300 },
            Self::TruncatedBody { at: 0 },
            Self::TruncatedBody { at: 300 },
            Self::StallBody { at: 0 },
            Self::StallBody { at: 300 },
            Self::Trickle { chunk: 97, every: Duration::from_millis(10) },
            Self::ProxyWrapped503,
            Self::ProxyHidden429,
            Self::ProxyPreviousErrors,
            Self::ErrorArray503,
            Self::ProxyText503,
        ]);
        all
    }

    /// The fault at `index` of [`all`](Self::all), beginning again after the last: a property test
    /// draws a number.
    pub fn nth(index: usize) -> Self {
        let all = Self::all();
        let index = index % all.len();
        all.into_iter().nth(index).unwrap_or(Self::None)
    }

    /// Whether the connection, not an answer, says that something is wrong: the caller sees an
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

    /// A short name for ledgers and traces.
    pub fn name(&self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Shaped(_) => "shaped",
            Self::Late { .. } => "late",
            Self::RateLimitMinute { .. } => "rate_limit_minute",
            Self::RateLimitDay { .. } => "rate_limit_day",
            Self::ZeroQuota { .. } => "zero_quota",
            Self::ZeroQuotaErrorInfo => "zero_quota_error_info",
            Self::ExhaustedBare => "exhausted_bare",
            Self::SharedCapacity => "shared_capacity",
            Self::SpendRate => "spend_rate",
            Self::SpendCap => "spend_cap",
            Self::PrepayDepleted { .. } => "prepay_depleted",
            Self::CapacityExhausted { .. } => "capacity_exhausted",
            Self::Overloaded => "overloaded",
            Self::HighDemand => "high_demand",
            Self::ServiceUnavailable => "service_unavailable",
            Self::DeadlineExpired503 => "deadline_expired_503",
            Self::DeadlineExpired504 => "deadline_expired_504",
            Self::Internal => "internal",
            Self::Unimplemented => "unimplemented",
            Self::BadGatewayHtml => "bad_gateway_html",
            Self::Cancelled => "cancelled",
            Self::RequestTimeout => "request_timeout",
            Self::BadRequest(_) => "bad_request",
            Self::Unauthenticated => "unauthenticated",
            Self::Forbidden(_) => "forbidden",
            Self::NotFound(_) => "not_found",
            Self::PayloadTooLargeHtml => "payload_too_large_html",
            Self::Refused(_) => "refused",
            Self::PromptBlocked(_) => "prompt_blocked",
            Self::NoImage => "no_image",
            Self::ImageOther { .. } => "image_other",
            Self::MaxTokens => "max_tokens",
            Self::StopWithoutImage => "stop_without_image",
            Self::UnknownFinishReason => "unknown_finish_reason",
            Self::ErrorInOk => "error_in_ok",
            Self::StreamErrorTail { .. } => "stream_error_tail",
            Self::StreamErrorEvent { .. } => "stream_error_event",
            Self::NoFinishReason { .. } => "no_finish_reason",
            Self::ConnectionRefused => "connection_refused",
            Self::ResetAfterReceipt => "reset_after_receipt",
            Self::ResetAfterGeneration => "reset_after_generation",
            Self::CutHead { .. } => "cut_head",
            Self::CutBody { .. } => "cut_body",
            Self::TruncatedBody { .. } => "truncated_body",
            Self::NoAnswer { .. } => "no_answer",
            Self::StallBody { .. } => "stall_body",
            Self::Trickle { .. } => "trickle",
            Self::ProxyWrapped503 => "proxy_wrapped_503",
            Self::ProxyHidden429 => "proxy_hidden_429",
            Self::ProxyPreviousErrors => "proxy_previous_errors",
            Self::ErrorArray503 => "error_array_503",
            Self::ProxyText503 => "proxy_text_503",
        }
    }
}
