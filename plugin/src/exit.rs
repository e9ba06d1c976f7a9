//! Owns how the plugin can end, and with which exit code.
//! Never decides which of them it is.

/// How the plugin ended, in ascending order: of several ends, the greatest is returned.
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
    /// A stop finished without success or was deleted, or the cluster refused something.
    Failed,
    /// Invalid arguments. Nothing was sent to the cluster.
    Usage,
    /// Ctrl-C.
    Interrupted,
}

impl Exit {
    /// Every end, in ascending order.
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

    /// The exit code of the process.
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
    fn of_several_ends_the_first_of_130_1_6_3_5_4_and_0_is_returned() {
        // Invalid arguments end before anything else can happen.
        let mut left: Vec<_> = Exit::ALL.into_iter().filter(|exit| *exit != Exit::Usage).collect();
        let mut returned = vec![];
        while let Some(greatest) = left.iter().max().copied() {
            returned.push(greatest.code());
            left.retain(|exit| *exit != greatest);
        }
        assert_eq!(returned, [130, 1, 6, 3, 5, 4, 0]);
    }
}
