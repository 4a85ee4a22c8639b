'use strict';

const { camel } = require('./convert.cjs');

/** What every function of this package rejects with or throws when the library refuses or fails. */
class SupermachineError extends Error {
  constructor(message, value = {}) {
    super(message);
    this.code = value.name ? `SM_ERR_${value.name.toUpperCase()}` : 'SM_ERR_INTERNAL';
    this.errno = value.code ?? 1;
    for (const key of ['op', 'object', 'output', 'console']) if (value[key]) this[key] = value[key];
  }
}

const errors = {};
const byCode = new Map();
for (const { code, class: name } of require('./codes.json')) {
  const c = { [name]: class extends SupermachineError {} }[name];
  Object.defineProperty(c.prototype, 'name', { value: name, configurable: true });
  errors[name] = c;
  byCode.set(code, c);
}
Object.defineProperty(SupermachineError.prototype, 'name', { value: 'SupermachineError', configurable: true });

/** Returns the error that the library describes. */
function errorFor(code, value) {
  const Class = byCode.get(code) ?? SupermachineError;
  let message = value.message ?? `error ${code}`;
  // What is said of options names them as this language does.
  if (value.op === 'read the options of') message = message.replace(/\b(?!sm_)[a-z]+(_[a-z0-9]+)+\b/g, camel);
  return new Class(message, { ...value, code });
}

module.exports = { SupermachineError, errors, errorFor };
