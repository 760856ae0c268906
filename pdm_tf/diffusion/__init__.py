"""The paper's mathematics, in its order. TensorFlow and NumPy alone, no Keras.

- `schedules`: beta_t, alpha_t and the posterior's variances as float64 tables; one noise level of them.
- `process`: q(z_t | x) and q(z_s | z_t, x) (Eqs. 1, 2).
- `predictions`: x <-> eps <-> v (Section 3.2).
- `likelihood`: Gaussian KL, the discretized decoder, the prior's KL; the terms of the bound on log p(x).
- `losses`: gamma_t, L_simple (Eq. 3) and L_vlb (Appendix C).
- `timesteps`: how often training sees each t.

Symbols: x is the data, z_t the latent, eps the noise; alpha is the *cumulative* product, as in the paper. A
*schedule* is the process, a *respaced* one has some of its timesteps, and a *level* is one of these.
"""
