//! Owns the faults that the simulation injects to verify that it detects them.
//! Never part of a shipped binary: without the feature `fault-injection` no fault can be injected.

/// A fault: a guard of the operator that is disabled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// A request is sent without a stored claim.
    NoClaim,
    /// A claim is stored before its request has a slot in the budget.
    ClaimBeforeSlot,
    /// A claim is stored without a test of the resource version.
    ClaimWithoutVersion,
    /// An outcome is stored without a test of the resource version, so that it may overwrite the claim of another
    /// process.
    RecordWithoutClaim,
    /// A run counts as not stopped after one read that shows it active.
    ConfirmAfterOneRead,
    /// A request is written even if its fence is closed.
    NoFence,
    /// The fence checks only the monotonic clock.
    NoWallClock,
    /// A run counts as unreadable for good after one read that fails.
    UnreadableOnce,
    /// A 403 to a stop request blocks reads as well.
    ForbiddenBlocksReads,
}

#[cfg(feature = "fault-injection")]
thread_local! {
    static INJECTED: std::cell::Cell<Option<Fault>> = const { std::cell::Cell::new(None) };
}

/// Injects a fault in this thread, or removes the injected one.
#[cfg(feature = "fault-injection")]
pub fn inject(fault: Option<Fault>) {
    INJECTED.set(fault);
}

/// Returns true if this fault is injected in this thread.
#[cfg(feature = "fault-injection")]
pub fn is_injected(fault: Fault) -> bool {
    INJECTED.get() == Some(fault)
}

/// Returns false: no fault can be injected.
#[cfg(not(feature = "fault-injection"))]
pub const fn is_injected(_: Fault) -> bool {
    false
}
