//! Owns the deliberate breaks by which the simulation shows that it finds what it looks for.
//! Never part of a binary that is shipped: without the feature `sabotage` nothing can be broken.

/// A guard that can be taken away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// A request is sent without a stored claim.
    NoClaim,
    /// A claim is stored before its request has a slot in the budget.
    ClaimBeforeSlot,
    /// A claim is stored whatever became of the resource in between.
    ClaimWithoutVersion,
    /// An outcome is stored whoever claimed in between.
    RecordWithoutClaim,
    /// A run that is read as active once counts as not stopped.
    ConfirmAfterOneRead,
    /// A request is written however old its claim is.
    NoFence,
    /// The fence looks at the monotonic clock only.
    NoWallClock,
    /// A run that is unreadable once counts as unreadable for good.
    UnreadableOnce,
    /// A 403 of a stop closes reads as well.
    ForbiddenClosesReads,
}

#[cfg(feature = "fault-injection")]
thread_local! {
    static BROKEN: std::cell::Cell<Option<Fault>> = const { std::cell::Cell::new(None) };
}

/// Takes a guard away in this thread.
#[cfg(feature = "fault-injection")]
pub fn inject(guard: Option<Fault>) {
    BROKEN.set(guard);
}

/// True where this guard is taken away.
#[cfg(feature = "fault-injection")]
pub fn is_injected(guard: Fault) -> bool {
    BROKEN.get() == Some(guard)
}

/// True where this guard is taken away: never.
#[cfg(not(feature = "fault-injection"))]
pub const fn is_injected(_: Fault) -> bool {
    false
}
