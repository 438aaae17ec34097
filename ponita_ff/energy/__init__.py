"""One assembly: E = scale · network + ZBL + reference, and the forces, stress and Hessian that follow."""
