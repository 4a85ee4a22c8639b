export { Image, VM, Process, Forward, Pool, Store, Result, ExitError, SupermachineError, errors, run, doctor, version, setAdmission, trace } from './index.cjs';
