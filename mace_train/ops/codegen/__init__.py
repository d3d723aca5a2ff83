"""What a kernel computes: polynomials -> programs -> derivatives -> statements in order."""
