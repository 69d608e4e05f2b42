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
/// assert_eq!(error.problems[0].line, Some(2));
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ConfigError {
    /// What the file is called. `None` where the file can work and this machine refuses one of its
    /// settings: an address in use, a file that cannot be read, an environment variable that is not
    /// set.
    pub file: Option<String>,
    /// What is wrong, in the order of the file's sections. Never empty.
    pub problems: Vec<ConfigProblem>,
}

/// One thing that is wrong with a configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ConfigProblem {
    /// The line in the file, from 1, where the problem has one.
    pub line: Option<usize>,
    /// The key, such as `retry.attempts`, where the problem belongs to one.
    pub key: Option<String>,
    /// What is wrong.
    pub what: String,
    /// What to write instead. Empty where the first part says it.
    pub remedy: String,
}

impl ConfigError {
    /// A setting that cannot work, without its place in a file.
    pub(crate) fn at(key: &str, what: impl Into<String>, remedy: impl Into<String>) -> Self {
        let (what, remedy) = (what.into(), remedy.into());
        let problem = ConfigProblem { line: None, key: Some(key.to_owned()), what, remedy };
        Self { file: None, problems: vec![problem] }
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, problem) in self.problems.iter().enumerate() {
            f.write_str(if n > 0 { "\n" } else { "" })?;
            match (&self.file, problem.line) {
                (Some(file), Some(line)) => write!(f, "{file}, line {line}: ")?,
                (Some(file), None) => write!(f, "{file}: ")?,
                (None, _) => {}
            }
            f.write_str(&problem.what)?;
            if !problem.remedy.is_empty() {
                write!(f, "; {}", problem.remedy)?;
            }
        }
        Ok(())
    }
}

impl std::error::Error for ConfigError {}
