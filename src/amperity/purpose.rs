//! Owns the purposes of requests to the API.
//! Never decides when a request is sent.

/// The purpose of a request. The order is the priority: earlier variants are sent first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Purpose {
    /// Fetches a token that other requests need.
    Token,
    /// Stops a run.
    Stop,
    /// Reads a run.
    Read,
}

impl Purpose {
    /// All purposes, in the order of their priority.
    pub const ALL: [Self; 3] = [Self::Token, Self::Stop, Self::Read];

    /// Returns the value of the metric label.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Token => "token",
            Self::Stop => "stop",
            Self::Read => "read",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn token_requests_go_before_stops_and_stops_before_reads() {
        let mut purposes = Purpose::ALL;
        purposes.sort();
        assert_eq!(purposes.map(Purpose::as_str), ["token", "stop", "read"]);
    }
}
