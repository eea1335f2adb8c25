"""What a release may claim: sensitivity, noise, privacy spent, and the certificate that says so."""
