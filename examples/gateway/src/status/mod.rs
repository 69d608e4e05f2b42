//! What is going on, for people: the status page.
