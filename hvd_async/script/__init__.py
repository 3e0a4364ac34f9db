"""Training in a loop of the user's own: `init`, `ScriptRun.prepare`, and what they return."""
