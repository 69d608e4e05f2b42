//! tower-gemini for reqwest and reqwest-middleware.
