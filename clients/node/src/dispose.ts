/**
 * The name of the method that `await using` calls. Node has it since 20.5; before, a program that uses it brings its own,
 * which has to be there when this package is loaded.
 */
export const asyncDispose: typeof Symbol.asyncDispose =
  Symbol.asyncDispose ?? (Symbol.for('Symbol.asyncDispose') as typeof Symbol.asyncDispose);
