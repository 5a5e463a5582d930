"""Ways to multiply by the inverse Hessian, behind one interface (`interface.Solver`)."""
