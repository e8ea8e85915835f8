"""Hessian, Gauss-Newton and Fisher matrices as operators with `@`; gradients; checks of the products."""
