//! Owns the exit codes of the plugin and their order.
//! Never decides which one applies.

/// The result of a call. The variants are in ascending order: of several results, the greatest is returned.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Exit {
    /// Created, or with `--wait` the run was stopped or the stop was accepted.
    Done,
    /// The run ended on its own.
    EndedOtherwise,
    /// The resource was created at or after its `notAfter`. No stop request was sent.
    Expired,
    /// No result within `--timeout`.
    TimedOut,
    /// A stop request was sent and its outcome is not known.
    Unknown,
    /// A stop finished without success or was deleted, or a request to the API server failed.
    Failed,
    /// Invalid arguments. Nothing was sent to the cluster.
    Usage,
    /// Ctrl-C.
    Interrupted,
}

impl Exit {
    /// Every variant, in ascending order.
    pub const ALL: [Self; 8] = [
        Self::Done,
        Self::EndedOtherwise,
        Self::Expired,
        Self::TimedOut,
        Self::Unknown,
        Self::Failed,
        Self::Usage,
        Self::Interrupted,
    ];

    /// Returns the exit code of the process.
    pub fn code(self) -> u8 {
        match self {
            Self::Done => 0,
            Self::Failed => 1,
            Self::Usage => 2,
            Self::TimedOut => 3,
            Self::EndedOtherwise => 4,
            Self::Expired => 5,
            Self::Unknown => 6,
            Self::Interrupted => 130,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_several_results_the_first_of_130_1_6_3_5_4_and_0_is_returned() {
        // With invalid arguments nothing else happens.
        let mut remaining: Vec<_> = Exit::ALL.into_iter().filter(|exit| *exit != Exit::Usage).collect();
        let mut returned = vec![];
        while let Some(greatest) = remaining.iter().max().copied() {
            returned.push(greatest.code());
            remaining.retain(|exit| *exit != greatest);
        }
        assert_eq!(returned, [130, 1, 6, 3, 5, 4, 0]);
    }
}
