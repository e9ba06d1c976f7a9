//! Owns how the plugin can end, and with which exit code.
//! Never decides which of them it is.

/// How it ended. Of several, the greatest is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Exit {
    /// What was asked for is done: created, or with `--wait` stopped.
    Done,
    /// The time to wait was over.
    TimedOut,
    /// A stop finished without success or was deleted, or the cluster refused something.
    Failed,
    /// The command line makes no sense. Nothing was asked of the cluster.
    Usage,
    /// Ctrl-C.
    Interrupted,
}

impl Exit {
    /// The exit code of the process.
    pub fn code(self) -> u8 {
        match self {
            Self::Done => 0,
            Self::Failed => 1,
            Self::Usage => 2,
            Self::TimedOut => 3,
            Self::Interrupted => 130,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_several_ends_the_worst_is_told() {
        let worst = |ends: &[Exit]| ends.iter().max().unwrap().code();
        assert_eq!(worst(&[Exit::Done, Exit::Done]), 0);
        assert_eq!(worst(&[Exit::Done, Exit::TimedOut]), 3);
        assert_eq!(worst(&[Exit::TimedOut, Exit::Failed, Exit::Done]), 1, "a failure is certain, a timeout is not");
        assert_eq!(worst(&[Exit::Interrupted, Exit::Failed]), 130);
    }
}
