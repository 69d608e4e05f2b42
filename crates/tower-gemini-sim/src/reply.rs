//! Responses about what is stored, before they are sent, and the pages of lists.

use bytes::Bytes;
use http::Uri;

use crate::api_error::ApiError;
use crate::dialect::JSON;
use crate::json::{Json, obj};
use crate::request::{decoded, query};

/// A response of status 200.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) content_type: &'static str,
    pub(crate) headers: Vec<(&'static str, String)>,
    pub(crate) body: Vec<Bytes>,
}

impl Reply {
    pub(crate) fn json(value: Json) -> Self {
        Self { content_type: JSON, headers: Vec::new(), body: value.pretty() }
    }

    /// `{}`, what a method answers that has nothing to say.
    pub(crate) fn empty() -> Self {
        Self::json(obj! {})
    }

    pub(crate) fn header(mut self, name: &'static str, value: String) -> Self {
        self.headers.push((name, value));
        self
    }
}

/// Items of a page when the caller names no number. Google does not document it.
const PAGE_SIZE: usize = 50;

/// One page of a list.
#[derive(Debug)]
pub(crate) struct Page<'a, T> {
    pub(crate) items: &'a [T],
    /// The token of the page behind it, which is the id of its first item.
    pub(crate) next: Option<String>,
}

impl<'a, T> Page<'a, T> {
    pub(crate) fn of<'i>(
        uri: &Uri,
        all: &'a [T],
        id: impl Fn(&'i T) -> &'i str,
    ) -> Result<Self, ApiError>
    where
        'a: 'i,
    {
        let asked = |camel, snake| query(uri, camel).or_else(|| query(uri, snake));
        let size = asked("pageSize", "page_size").or_else(|| query(uri, "limit"));
        let size = size.and_then(|size| size.parse().ok());
        let size = size.filter(|size| *size > 0).unwrap_or(PAGE_SIZE);
        let place = |token: &str| {
            let found = all.iter().position(|item| id(item) == token);
            found.ok_or_else(|| ApiError::invalid("The page token is invalid."))
        };
        let token = asked("pageToken", "page_token").filter(|token| !token.is_empty());
        let from = match (token, query(uri, "after").map(decoded)) {
            (Some(token), _) => place(token)?,
            // OpenAI's lists name the last item of the page before.
            (None, Some(name)) => place(name.rsplit('/').next().unwrap_or_default())? + 1,
            (None, None) => 0,
        };
        let to = all.len().min(from + size);
        Ok(Self { items: &all[from..to], next: all.get(to).map(|item| id(item).to_owned()) })
    }
}
