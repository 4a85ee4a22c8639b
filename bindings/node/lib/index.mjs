export {
  Image, VM, Process, Forward, Watch, Pool, Store, Result, FileInfo, ExitError, SupermachineError, errors,
  run, doctor, version, setAdmission, metrics, trace,
} from './index.cjs';
