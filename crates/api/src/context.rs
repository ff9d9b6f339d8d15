//! Contexts: interpreters that stay in a guest, with their variables.

use std::collections::BTreeMap;
use std::fmt::Display;

use serde::de::IntoDeserializer as _;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

use crate::operation::{PathError, Segment};
use crate::problem::Problem;

/// Longest time of an execution, in seconds.
pub const LONGEST_EXECUTION: u64 = 3_600;

/// Language of a context.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Language {
    /// Python 3, by the `python3` of the guest.
    #[default]
    #[serde(alias = "python3")]
    Python,
    /// JavaScript, by the `node` of the guest.
    #[serde(alias = "js", alias = "node")]
    JavaScript,
    /// Bash, by the `bash` of the guest.
    #[serde(alias = "sh", alias = "shell")]
    Bash,
}

impl Language {
    /// All languages.
    pub const ALL: [Self; 3] = [Self::Python, Self::JavaScript, Self::Bash];

    /// Its name; also the id of the context that code without a context runs in.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Python => "python",
            Self::JavaScript => "javascript",
            Self::Bash => "bash",
        }
    }
}

impl Display for Language {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(self.as_str())
    }
}

impl std::str::FromStr for Language {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found: Result<Self, serde::de::value::Error> = Self::deserialize(text.into_deserializer());
        found.map_err(|_| {
            let all = Self::ALL.map(Self::as_str).join(", ");
            format!("`{}` is no language of a context: {all}", text.escape_debug())
        })
    }
}

/// Id of a context: 1 to 40 lower-case letters, digits and dashes. Forks of a VM have its contexts, with the ids that they have
/// there.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(try_from = "String")]
pub struct ContextId(String);

impl ContextId {
    /// The id as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<Language> for ContextId {
    fn from(language: Language) -> Self {
        Self(language.as_str().to_owned())
    }
}

impl TryFrom<String> for ContextId {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let fits = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        if (1..=40).contains(&text.len()) && text.bytes().all(fits) {
            Ok(Self(text))
        } else {
            Err(format!("`{}` is no id of a context", text.escape_debug()))
        }
    }
}

impl std::str::FromStr for ContextId {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::try_from(text.to_owned())
    }
}

impl Display for ContextId {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl Segment for ContextId {
    const NAME: &'static str = "context";
    const ABOUT: &'static str = "Id of a context.";
    const PATTERN: &'static str = "^[a-z0-9-]{1,40}$";

    fn read(text: &str) -> Result<Self, PathError> {
        text.parse().map_err(|detail| PathError { code: "context_id_invalid", detail })
    }
}

/// A context.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Context {
    /// Its id in the VM.
    pub id: ContextId,
    /// Language.
    pub language: Language,
    /// Directory that it was started in; `.` for the home of its user.
    pub cwd: String,
}

/// Contexts of a VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ContextList {
    /// All that run, oldest first.
    pub contexts: Vec<Context>,
}

/// A context to be started.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateContext {
    /// Language.
    #[serde(default)]
    pub language: Language,
    /// Directory that it is started in; absent: the home of its user.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cwd: Option<String>,
    /// User name or number, as of a command; absent: the one whom commands run as.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Variables of its environment, as long as it lives, and after a restart of it too.
    #[serde(default, alias = "env_vars", skip_serializing_if = "Option::is_none")]
    pub env: Option<BTreeMap<String, String>>,
}

/// Code to be executed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ExecuteCode {
    /// The code.
    pub code: String,
    /// Context that it runs in; absent: that of the language, which is started if need be.
    #[serde(default, alias = "context_id", skip_serializing_if = "Option::is_none")]
    pub context: Option<ContextId>,
    /// Language of the context, if none is named.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub language: Option<Language>,
    /// Variables of the environment, for this execution only.
    #[serde(default, alias = "env_vars", skip_serializing_if = "Option::is_none")]
    pub env: Option<BTreeMap<String, String>>,
    /// Seconds until it is interrupted, 1 to 3600. Time in a queue of the context counts.
    #[serde(default = "five_minutes")]
    #[schema(default = 300, minimum = 1, maximum = 3600)]
    pub timeout: u64,
    /// Answer `incomplete` instead of running code that a reader of lines would go on reading, such as the head of a loop.
    #[serde(default)]
    #[schema(default = false)]
    pub interactive: bool,
}

const fn five_minutes() -> u64 {
    300
}

impl ExecuteCode {
    /// Code for the context of the default language, with the usual time.
    #[must_use]
    pub fn new(code: impl Into<String>) -> Self {
        let (code, timeout) = (code.into(), five_minutes());
        Self { code, context: None, language: None, env: None, timeout, interactive: false }
    }
}

/// A value in all the forms that it has.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, ToSchema)]
pub struct CodeResult {
    /// True for the value of the last expression; false for what the code displayed.
    #[serde(default)]
    pub is_main_result: bool,
    /// As text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
    /// As HTML.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub html: Option<String>,
    /// As Markdown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub markdown: Option<String>,
    /// As SVG.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub svg: Option<String>,
    /// As PNG, in base64.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub png: Option<String>,
    /// As JPEG, in base64.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub jpeg: Option<String>,
    /// As PDF, in base64.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pdf: Option<String>,
    /// As LaTeX.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub latex: Option<String>,
    /// As JSON.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub json: Option<Value>,
    /// As JavaScript.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub javascript: Option<String>,
    /// Further forms by media type; `left_out` names those that were too long.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub extra: BTreeMap<String, Value>,
}

/// One line of an execution. `end_of_execution` and `failed` are the last.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ExecutionLine {
    /// It begins.
    NumberOfExecutions {
        /// Executions of the context so far, this one included.
        execution_count: u64,
    },
    /// Standard output of the code and of what it started.
    Stdout {
        /// Text; what is no UTF-8 is replaced.
        text: String,
        /// When it came (RFC 3339 with offset).
        timestamp: String,
    },
    /// Standard error of the code and of what it started.
    Stderr {
        /// Text; what is no UTF-8 is replaced.
        text: String,
        /// When it came (RFC 3339 with offset).
        timestamp: String,
    },
    /// A value.
    Result(Box<CodeResult>),
    /// The code ended with an exception, or in bash with an exit status other than 0 (`ExitStatus`, the number is the value).
    /// `TimeoutError` if its time was up.
    Error {
        /// Name of the exception.
        name: String,
        /// Its text.
        value: String,
        /// Where, line by line.
        traceback: String,
    },
    /// The code would go on; nothing was run. Only where `interactive` asks for it.
    Incomplete,
    /// Nothing happened for five seconds.
    Keepalive,
    /// It has ended.
    EndOfExecution,
    /// It cannot be said how it ended.
    Failed {
        /// The failure.
        problem: Problem,
    },
}
