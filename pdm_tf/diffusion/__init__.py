"""The paper's mathematics, in its order. TensorFlow and NumPy alone, no Keras.

- `schedules`: beta_t, alpha_t and the posterior's variances as float64 tables; strided schedules.
- `process`: q(z_t | x), q(z_s | z_t, x), Gaussian KL, the discretized decoder (Eqs. 1, 2).
- `predictions`: x <-> eps <-> v (Section 3.2).
- `losses`: gamma_t, L_simple (Eq. 3) and L_vlb (Appendix C).

Symbols: x is the data, z_t the latent, eps the noise; alpha is the *cumulative* product, as in the paper.
"""
