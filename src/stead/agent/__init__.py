"""Makes declarations true on one host: one task per machine, everything privileged, small enough to audit."""
