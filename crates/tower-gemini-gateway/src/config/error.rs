//! Reports why a configuration is refused.

use std::fmt;

/// Why a configuration is refused: every problem that was found, each with its place, its key, what
/// is wrong and what to write instead.
///
/// ```
/// use tower_gemini_gateway::Config;
///
/// let error = Config::parse("[retry]\natempts = 3\n", "gateway.toml").unwrap_err();
/// assert_eq!(
///     error.to_string(),
///     "gateway.toml, line 2: the key `atempts` is not known; did you mean `attempts`?",
/// );
/// assert_eq!(error.problems()[0].line(), Some(2));
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigError {
    file: String,
    problems: Vec<ConfigProblem>,
}

/// One thing that is wrong with a configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigProblem {
    line: Option<usize>,
    key: Option<String>,
    what: String,
    remedy: String,
}

impl ConfigError {
    pub(super) fn new(file: &str, problems: Vec<ConfigProblem>) -> Self {
        Self { file: file.to_owned(), problems }
    }

    /// What the file is called.
    #[must_use]
    pub fn file(&self) -> &str {
        &self.file
    }

    /// What is wrong, in the order of the file's sections. Never empty.
    #[must_use]
    pub fn problems(&self) -> &[ConfigProblem] {
        &self.problems
    }
}

impl ConfigProblem {
    pub(crate) fn at(key: &str, what: impl Into<String>, remedy: impl Into<String>) -> Self {
        let key = Some(key.to_owned());
        Self { line: None, key, what: what.into(), remedy: remedy.into() }
    }

    pub(super) fn in_line(line: Option<usize>, what: String, remedy: String) -> Self {
        Self { line, key: None, what, remedy }
    }

    pub(super) fn with_line(mut self, line: Option<usize>) -> Self {
        self.line = line;
        self
    }

    /// The line in the file, from 1, where the problem has one.
    #[must_use]
    pub fn line(&self) -> Option<usize> {
        self.line
    }

    /// The key, such as `retry.attempts`, where the problem belongs to one.
    #[must_use]
    pub fn key(&self) -> Option<&str> {
        self.key.as_deref()
    }

    /// What is wrong.
    #[must_use]
    pub fn what(&self) -> &str {
        &self.what
    }

    /// What to write instead. Empty where the first part says it.
    #[must_use]
    pub fn remedy(&self) -> &str {
        &self.remedy
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, problem) in self.problems.iter().enumerate() {
            let new_line = if n > 0 { "\n" } else { "" };
            write!(f, "{new_line}{}", self.file)?;
            if let Some(line) = problem.line {
                write!(f, ", line {line}")?;
            }
            write!(f, ": {problem}")?;
        }
        Ok(())
    }
}

impl fmt::Display for ConfigProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)?;
        if self.remedy.is_empty() { Ok(()) } else { write!(f, "; {}", self.remedy) }
    }
}

impl std::error::Error for ConfigError {}
impl std::error::Error for ConfigProblem {}

/// Why a gateway does not start or does not take another configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum GatewayError {
    /// The configuration cannot work.
    Config(ConfigError),
    /// The configuration can work, and this machine refuses one of its settings: an address in use,
    /// a file that cannot be read, an environment variable that is not set.
    Setting(ConfigProblem),
}

impl From<ConfigError> for GatewayError {
    fn from(error: ConfigError) -> Self {
        Self::Config(error)
    }
}

impl From<ConfigProblem> for GatewayError {
    fn from(problem: ConfigProblem) -> Self {
        Self::Setting(problem)
    }
}

impl fmt::Display for GatewayError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Config(error) => error.fmt(f),
            Self::Setting(problem) => problem.fmt(f),
        }
    }
}

impl std::error::Error for GatewayError {}
