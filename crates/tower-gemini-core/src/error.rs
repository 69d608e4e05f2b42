//! One error for all layers.
