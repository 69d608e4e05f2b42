//! Access to the inner service of a layer's service.

/// Adds `get_ref`, `get_mut` and `into_inner`, as tower's own services have them.
macro_rules! inner_access {
    ($service:ident $(, $mode:ident)?) => {
        impl<S $(, $mode)?> $service<S $(, $mode)?> {
            /// Returns a reference to the inner service.
            pub fn get_ref(&self) -> &S {
                &self.inner
            }

            /// Returns a mutable reference to the inner service.
            pub fn get_mut(&mut self) -> &mut S {
                &mut self.inner
            }

            /// Returns the inner service.
            pub fn into_inner(self) -> S {
                self.inner
            }
        }
    };
}
pub(crate) use inner_access;
