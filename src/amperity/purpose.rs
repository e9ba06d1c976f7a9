//! Owns what a request to the API is for.
//! Never decides when it is sent.

/// What a request is for. An earlier one goes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Purpose {
    /// Fetches a token that others wait for.
    Token,
    /// Stops a run.
    Stop,
    /// Reads a run.
    Read,
}

impl Purpose {
    /// Every purpose, in their order.
    pub const ALL: [Self; 3] = [Self::Token, Self::Stop, Self::Read];

    /// The purpose as it stands in metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Token => "token",
            Self::Stop => "stop",
            Self::Read => "read",
        }
    }
}
