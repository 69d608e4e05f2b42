//! `[otel]`: where spans and metrics of calls are exported.

use std::path::PathBuf;

use http::{HeaderMap, HeaderName, HeaderValue};
use percent_encoding::percent_decode_str;
use serde::Deserialize;

use super::{BaseUrl, Check, ConfigError, ensure, read_secret, via_http};

section! { pub(crate) Otel {
    endpoint: Option<BaseUrl> = None,
    headers_env: Option<String> = None,
    headers_file: Option<PathBuf> = None,
    proxy: Option<BaseUrl> = None,
    service_name: String = "gemini-gateway".to_owned(),
    sample_ratio: f64 = 1.0,
}}

impl Otel {
    /// Every setting that cannot work.
    pub(super) fn check(&self, check: &mut impl FnMut(Check<()>)) {
        let (env, file) = (self.headers_env.is_some(), self.headers_file.is_some());
        let is_plain = |url: &BaseUrl| !url.0.authority().is_some_and(|a| a.as_str().contains('@'));
        let what = "otel.endpoint has a user name, which is not sent";
        let remedy = "write an authorization header in headers_env or headers_file";
        check(ensure(self.endpoint.as_ref().is_none_or(is_plain), "otel.endpoint", what, remedy));
        let what = "this gateway was built without the feature `otel`";
        let remedy = "build it with `cargo install --path crates/tower-gemini-gateway --features \
                      otel`, or remove [otel] endpoint";
        let is_built = cfg!(feature = "otel") || self.endpoint.is_none();
        check(ensure(is_built, "otel.endpoint", what, remedy));
        let what = "[otel] has headers and nobody to send them to";
        let has_receiver = self.endpoint.is_some() || !(env || file);
        check(ensure(has_receiver, "otel", what, "write otel.endpoint"));
        let what = "[otel] has its headers in two places";
        check(ensure(!(env && file), "otel", what, "write headers_env or headers_file"));
        check(via_http("otel.proxy", self.proxy.as_ref()));
        let (key, name) = ("otel.service_name", self.service_name.trim());
        check(ensure(!name.is_empty(), key, "otel.service_name is empty", "write a name"));
        let (key, ratio) = ("otel.sample_ratio", self.sample_ratio);
        let what = format!("{key} = {ratio} is not a share");
        check(ensure((0.0..=1.0).contains(&ratio), key, what, "write 0.0 to 1.0"));
    }

    /// The headers of exports, read from where the file says that they are. `env` looks a variable
    /// up.
    pub(crate) fn headers(&self, env: impl Fn(&str) -> Option<String>) -> Check<HeaderMap> {
        let (variable, file) = (self.headers_env.as_deref(), self.headers_file.as_deref());
        if variable.is_none() && file.is_none() {
            return Ok(HeaderMap::new());
        }
        let what = "the headers of [otel]";
        let (env_key, file_key) = ("otel.headers_env", "otel.headers_file");
        let (key, text) = read_secret(what, (env_key, variable), (file_key, file), env)?;
        let pairs = text.split([',', '\n']).map(str::trim).filter(|pair| !pair.is_empty());
        let headers: Option<HeaderMap> = pairs.map(header).collect();
        // Neither name nor value is repeated: either may be the secret.
        let wrong = || ConfigError::at(key, format!("{what} are no headers"), "write name=value");
        headers.filter(|headers| !headers.is_empty()).ok_or_else(wrong)
    }
}

/// `name=value`, as in `OTEL_EXPORTER_OTLP_HEADERS`: characters of the value may be
/// percent-encoded.
fn header(pair: &str) -> Option<(HeaderName, HeaderValue)> {
    let (name, value) = pair.split_once('=')?;
    let value = percent_decode_str(value.trim()).decode_utf8().ok()?;
    let mut secret = HeaderValue::from_str(&value).ok()?;
    secret.set_sensitive(true);
    Some((name.trim().parse().ok()?, secret))
}

#[cfg(test)]
mod tests {
    use super::super::Config;
    use super::*;

    fn headers(text: &'static str) -> Check<HeaderMap> {
        let settings = Otel { headers_env: Some("H".to_owned()), ..Otel::default() };
        settings.headers(|name| (name == "H").then(|| text.to_owned()))
    }

    #[test]
    fn headers_are_read_as_the_standard_variable_spells_them_and_never_shown() {
        let read = headers("authorization=Bearer%20SENTINEL-0123, x-team = a,\n").unwrap();
        assert_eq!(read["authorization"], "Bearer SENTINEL-0123");
        assert_eq!(read["x-team"], "a");
        assert!(!format!("{read:?}").contains("SENTINEL"));
        for wrong in ["SENTINEL", "a b=SENTINEL", "a=SENTINEL%0A", " ", "a=%ff"] {
            let error = headers(wrong).unwrap_err().to_string();
            assert!(error.contains("name=value") && !error.contains("SENTINEL"), "{error}");
        }
        let unset = Otel { headers_env: Some("H".to_owned()), ..Otel::default() };
        assert!(unset.headers(|_| None).unwrap_err().to_string().contains("not set"));
    }

    #[cfg(not(feature = "otel"))]
    #[test]
    fn a_build_without_the_feature_says_how_to_build_one_with_it() {
        let file = "[otel]\nservice_name = \"a\"\n";
        Config::parse(file, "f").unwrap();
        let file = format!("{file}endpoint = \"http://localhost:4318\"\n");
        let refusal = Config::parse(&file, "f").unwrap_err().to_string();
        assert!(refusal.contains("line 3") && refusal.contains("--features otel"), "{refusal}");
    }

    #[cfg(feature = "otel")]
    #[test]
    fn nothing_is_exported_where_no_endpoint_is_written() {
        assert_eq!(Config::parse("[otel]\n", "f").unwrap().otel.endpoint, None);
    }
}
