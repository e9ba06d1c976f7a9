//! Owns the identity of a resource.
//! Never holds anything that changes.

use std::sync::Arc;

/// The identity of a resource.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResourceId {
    /// The namespace.
    pub namespace: Arc<str>,
    /// The name.
    pub name: Box<str>,
    /// The uid.
    pub uid: Box<str>,
}
